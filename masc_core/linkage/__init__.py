"""Bottom-up clustering of points: the algorithms behind `masc_core.tree`."""
