"""Exact average linkage in memory that grows with the codes, not with their pairs."""
