"""The optimisation loop that the stages share, and what a run leaves on disk."""
