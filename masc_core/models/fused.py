"""What a step does between its products, and which kernels do it.

On a CPU they are loops that numba compiled; elsewhere torch's operators, of which a compiler makes
kernels.

Legend: R rows, C width, F hidden width of the feed-forward block.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

KERNEL_DTYPES = (torch.float32, torch.bfloat16)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x + residual``, both (R, C), and its norm; see `rms_norm`."""
    if _has_kernels(x):
        summed: tuple[Tensor, Tensor] = _kernels().add_rms_norm(x, residual, weight, eps)
        return summed
    x = x + residual
    return x, rms_norm(x, weight, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps)`` in float32, cast back, then scaled in the low precision.

    Parameters
    ----------
    x : (..., C)
    weight : (C,)
    """
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight


def swiglu(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` (R, F) of gates and factors side by side, (R, 2 F)."""
    if _has_kernels(gate_up):
        product: Tensor = _kernels().swiglu(gate_up)
        return product
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def _has_kernels(x: Tensor) -> bool:
    return x.is_cpu and x.dtype in KERNEL_DTYPES and not torch.compiler.is_compiling()


@cache
def _kernels() -> ModuleType:
    from masc_core.cpu_kernels import feed_forward  # noqa: PLC0415 - takes half a second

    return feed_forward
