"""Checkpoints of LlamaGen: read, served, and taken as a start."""
