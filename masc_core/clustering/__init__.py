"""Partitions of a codebook, by their methods: the semantic tree and what it is compared with."""

# Without an import, for the help of commands.
METHODS = (
    "average",
    "single",
    "complete",
    "ward",
    "centroid",
    "kmeans",
    "kmeans++",
    "balanced-kmeans",
    "leaf-order",
    "random",
    "identity",
)
