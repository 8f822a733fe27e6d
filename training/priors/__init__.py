"""Priors built, measured against each other, and drawn."""
