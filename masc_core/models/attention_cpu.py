"""Attention of one new position per row on a CPU, as one compiled loop: rotate, store, attend.

Every (row, head) is a task of its own: it rotates the query and the key, stores key and value, and
goes through the row's own positions. Nothing depends on the other rows, on where a row's images
are, or on the number of threads, so a row has the same bits in any company.
Same function as `masc_core.models.kv_cache.attend_plainly`. Sums are float32.

Keys and values in bfloat16 are taken by their bits, as int16: numba has no such type.

Legend: S slots, R rows, T positions, H heads, D head dim.
"""

# numba has no types of its own, and compiled loops take arrays one by one.
# ruff: noqa: ANN001, ANN202, ARG001, ARG005, PLR0913, PLR0917
# mypy: allow-untyped-defs

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from numba.core import types
from numba.extending import overload
from torch import Tensor

from masc_core.kernel import inline, kernel, reduction, serial

DTYPES = (torch.float32, torch.bfloat16)

_LOG2_E = np.float32(1.0 / math.log(2.0))
# ln 2 in two parts: a whole number of times the first is exact (Cody and Waite).
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(math.log(2.0) - 0.693359375)
_ONE, _HALF = np.float32(1), np.float32(0.5)
# Below it the exponential would leave the normal numbers.
_LOWEST = np.float32(-87.0)
_MANTISSA_BITS, _EXPONENT_BIAS = np.int32(23), np.int32(127)

Floats = npt.NDArray[np.float32]
Stored = npt.NDArray[np.float32] | npt.NDArray[np.int16]
Ints = npt.NDArray[np.int64]


def attend(
    qkv: Tensor, cos_sin: Tensor, slots: Tensor, positions: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Rotate and store what is new, and attend; see `masc_core.models.kv_cache.attend_plainly`.

    All tensors are on the CPU and contiguous; ``qkv``, ``keys`` and ``values`` are of one type of
    ``DTYPES``.
    """
    num_heads, head_dim = keys.shape[1], keys.shape[3]
    out = torch.empty(len(qkv), num_heads, head_dim, dtype=qkv.dtype)
    arrays = (
        _array(qkv),
        cos_sin.numpy(),
        slots.numpy(),
        positions.numpy(),
        _array(keys),
        _array(values),
        _array(out),
    )
    num_threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    if num_threads == 1:  # to begin a parallel loop takes as long as a small model's attention
        _attend(*arrays)
    else:
        # As many as torch has, and the same ones: both take their threads from one OpenMP.
        numba.set_num_threads(num_threads)
        _attend_in_parallel(*arrays)
    return out


def compile_ahead() -> None:
    """Compile the loop for every type, or load what was compiled before on this machine."""
    for dtype in DTYPES:
        slot = torch.zeros(1, dtype=torch.int64)
        cache = torch.zeros(1, 1, 1, 4, dtype=dtype)
        attend(torch.zeros(1, 3, 4, dtype=dtype), torch.zeros(1, 2, 4), slot, slot, cache, cache)


def _array(tensor: Tensor) -> Any:  # noqa: ANN401 - float32 or the bits of bfloat16
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy()


@serial
def _attend(
    qkv: Stored,
    cos_sin: Floats,
    slots: Ints,
    positions: Ints,
    keys: Stored,
    values: Stored,
    out: Stored,
) -> None:
    for row in range(out.shape[0]):
        for head in range(out.shape[1]):
            _attend_one(row, head, qkv, cos_sin, slots, positions, keys, values, out)


@kernel
def _attend_in_parallel(
    qkv: Stored,
    cos_sin: Floats,
    slots: Ints,
    positions: Ints,
    keys: Stored,
    values: Stored,
    out: Stored,
) -> None:
    num_heads = out.shape[1]
    for task in numba.prange(out.shape[0] * num_heads):
        row, head = task // num_heads, task % num_heads
        _attend_one(row, head, qkv, cos_sin, slots, positions, keys, values, out)


@inline
def _attend_one(
    row: int,
    head: int,
    qkv: Stored,
    cos_sin: Floats,
    slots: Ints,
    positions: Ints,
    keys: Stored,
    values: Stored,
    out: Stored,
) -> None:
    """One row and one head: all that the kernel does."""
    num_heads, head_dim = out.shape[1:]
    position = positions[row]
    past_keys, past_values = keys[slots[row], head], values[slots[row], head]  # (T, D)
    _rotate(qkv[row, num_heads + head], cos_sin[row], past_keys[position])
    past_values[position] = qkv[row, 2 * num_heads + head]
    _rotate(qkv[row, head], cos_sin[row], out[row, head])  # rounded as keys are
    query = np.empty(head_dim, np.float32)
    scale = np.float32(1.0 / math.sqrt(head_dim))
    for d in range(head_dim):
        query[d] = _widen(out[row, head, d]) * scale
    weights = np.empty(position + 1, np.float32)
    highest = np.float32(-np.inf)
    for t in range(position + 1):
        weights[t] = _dot(query, past_keys[t])
        highest = max(highest, weights[t])
    for t in range(position + 1):
        weights[t] = _exp(weights[t] - highest)
    total = _sum(weights)
    attended = np.zeros(head_dim, np.float32)
    for t in range(position + 1):
        weight = weights[t]
        for d in range(head_dim):
            attended[d] += weight * _widen(past_values[t, d])
    for d in range(head_dim):
        out[row, head, d] = _narrow(attended[d] / total, out[row, head, d])


@inline
def _rotate(vector: Stored, cos_sin: Floats, rotated: Stored) -> None:
    """Rotate pairs of numbers (D,) as `masc_core.models.rope.apply_rope` does."""
    for pair in range(0, len(vector), 2):
        a, b = _widen(vector[pair]), _widen(vector[pair + 1])
        first = a * cos_sin[0, pair] + b * cos_sin[1, pair]
        second = b * cos_sin[0, pair + 1] + a * cos_sin[1, pair + 1]
        rotated[pair] = _narrow(first, rotated[pair])
        rotated[pair + 1] = _narrow(second, rotated[pair + 1])


@reduction
def _dot(query: Floats, key: Stored) -> np.float32:
    total = np.float32(0)
    for d in range(len(query)):
        total += query[d] * _widen(key[d])
    return total


@reduction
def _sum(numbers: Floats) -> np.float32:
    total = np.float32(0)
    for number in numbers:
        total += number
    return total


@inline
def _exp(x: np.float32) -> np.float32:
    """``e^x`` for x <= 0, to two units in the last place.

    A polynomial that the processor computes for many numbers at once, unlike the C library's
    function. Coefficients: Cephes Mathematical Library, ``expf``.
    """
    x = max(x, _LOWEST)
    power = np.floor(x * _LOG2_E + _HALF)
    x = x - power * _LN2_HIGH - power * _LN2_LOW
    value = np.float32(1.9875691500e-4)
    value = value * x + np.float32(1.3981999507e-3)
    value = value * x + np.float32(8.3334519073e-3)
    value = value * x + np.float32(4.1665795894e-2)
    value = value * x + np.float32(1.6666665459e-1)
    value = value * x + np.float32(5.0000001201e-1)
    value = value * x * x + x + _ONE
    two_to_power = (np.int32(power) + _EXPONENT_BIAS) << _MANTISSA_BITS
    return value * np.int32(two_to_power).view(np.float32)


def _widen(number: Any) -> Any:  # noqa: ANN401
    """The float32 that was stored; compiled as below."""
    raise NotImplementedError(number)


def _narrow(number: Any, like: Any) -> Any:  # noqa: ANN401
    """A float32 as it is stored, in the type of ``like``; compiled as below."""
    raise NotImplementedError(number, like)


@overload(_widen, inline="always")
def _(number):
    if isinstance(number, types.Integer):
        return lambda number: np.int32(np.int32(number) << np.int32(16)).view(np.float32)
    return lambda number: number


@overload(_narrow, inline="always")
def _(number, like):
    if isinstance(like, types.Integer):
        return _nearest_bfloat16
    return lambda number, like: number


def _nearest_bfloat16(number, like):
    bits = np.float32(number).view(np.uint32)
    # To the nearest, and of two equally near ones to the even one, as torch rounds.
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.int16(np.uint32(rounded) >> np.uint32(16))
