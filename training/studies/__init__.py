"""Comparisons of priors and pictures of codebooks."""
