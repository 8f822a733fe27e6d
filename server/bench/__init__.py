"""A load generator for any running server."""
