"""A load generator against any running server: it knows HTTP and nothing of how images are made."""
