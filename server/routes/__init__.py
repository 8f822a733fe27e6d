"""HTTP routes, one concern per file."""
