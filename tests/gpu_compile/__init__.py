"""Compiles all that a GPU runs, without one; see `__main__`."""
