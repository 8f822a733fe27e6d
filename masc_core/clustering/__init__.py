"""Partitions of a codebook other than the semantic tree: the baselines that it is compared with."""
