"""What a step does between its products on a CPU, as compiled loops.

Each computes what a few lines of torch compute beside its call, in one call instead of up to a
hundred. On a GPU `torch.compile` makes kernels of those lines. No result depends on other rows or
on the number of threads.
"""
