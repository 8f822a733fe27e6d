"""What a step does between its products on a CPU, as compiled loops.

Each is the same function as a few lines of torch, which stand where it is called and of which
`torch.compile` makes a GPU's kernels, in one call instead of up to a hundred. Nothing in them
depends on other rows or on the number of threads.
"""
