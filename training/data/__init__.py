"""Images and codes: where they lie, how they are read."""
