"""Learning rate by step: linear warm-up, then a cosine to a share of the peak."""

from __future__ import annotations

import math

from torch.optim import Optimizer


def learning_rate(
    step: int, *, total_steps: int, peak: float, min_ratio: float, warmup_steps: int
) -> float:
    """Rate of optimiser step ``step`` (counted from 0) of ``total_steps``."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * (min_ratio + (1 - min_ratio) * cosine)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every parameter group the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
