"""The codebook of a model, for the page: clusters, branches and pictures."""
