"""Batching engines behind one interface."""
