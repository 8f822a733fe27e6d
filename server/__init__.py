"""The HTTP front end. Nothing in this package imports torch."""
