"""Root mean square norm of a sum, and SwiGLU's product, as loops over rows.

Legend: R rows, C width, F hidden width of the feed-forward block.
"""

# ruff: noqa: ANN001, ANN202
# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from masc_core.cpu_kernels.bfloat16 import DTYPES, array, exp, narrow, widen
from masc_core.numba_jit import njit_reassociated, njit_serial


def add_rms_norm(x: Tensor, branch: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x + branch`` and its norm; see `masc_core.models.gpt.add_rms_norm`.

    All are contiguous, of one type of ``DTYPES``.
    """
    total, normed = torch.empty_like(x), torch.empty_like(x)
    inputs = x.data_ptr(), branch.data_ptr(), weight.data_ptr()
    num_rows, width = x.shape
    outputs = total.data_ptr(), normed.data_ptr()
    _add_rms_norm(DTYPES[x.dtype], inputs, outputs, num_rows, width, eps)
    return total, normed


def swiglu(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up``, (R, F), of gates then factors (R, 2 F), contiguous, of ``DTYPES``."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(num_rows, width, dtype=gate_up.dtype)
    _swiglu(DTYPES[out.dtype], gate_up.data_ptr(), out.data_ptr(), num_rows, width)
    return out


@njit_serial
def _add_rms_norm(dtype, inputs, outputs, num_rows, width, eps):
    shape = (num_rows, width)
    x = array(inputs[0], shape, dtype)
    branch = array(inputs[1], shape, dtype)
    weight = array(inputs[2], (width,), dtype)
    total = array(outputs[0], shape, dtype)
    normed = array(outputs[1], shape, dtype)
    for row in range(num_rows):
        for c in range(width):
            total[row, c] = narrow(widen(x[row, c]) + widen(branch[row, c]), x[row, c])
        mean = _sum_of_squares(total[row]) / np.float32(width)
        scale = np.float32(1) / np.float32(math.sqrt(mean + np.float32(eps)))
        for c in range(width):
            # Rounded before it is scaled, as the module does in the low precision.
            unit = widen(narrow(widen(total[row, c]) * scale, x[row, c]))
            normed[row, c] = narrow(unit * widen(weight[c]), x[row, c])


@njit_reassociated
def _sum_of_squares(numbers):
    total = np.float32(0)
    for c in range(len(numbers)):
        total += widen(numbers[c]) * widen(numbers[c])
    return total


@njit_serial
def _swiglu(dtype, gate_up, out, num_rows, width):
    both = array(gate_up, (num_rows, 2, width), dtype)
    product = array(out, (num_rows, width), dtype)
    for row in range(num_rows):
        for f in range(width):
            gate = widen(narrow(_silu(widen(both[row, 0, f])), both[row, 0, f]))
            product[row, f] = narrow(gate * widen(both[row, 1, f]), both[row, 0, f])


@njit_serial
def _silu(x):
    power = exp(-abs(x))
    return x * (np.float32(1) if x >= 0 else power) / (np.float32(1) + power)
