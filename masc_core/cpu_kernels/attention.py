"""Attention of one new position per row: rotate, store, attend.

Every (row, head) is a task of its own: it rotates the query and the key, stores key and value, and
goes through the row's own positions. Sums are float32, in an order that depends on the row's
position alone. Same function as `masc_core.models.kv_cache.attention_reference`.

Legend: S slots, R rows, T positions, H heads, D head dim.
"""

# ruff: noqa: ANN001, ANN202, PLR0913, PLR0917
# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

import math
import threading

import numba
import numpy as np
import torch
from torch import Tensor

from masc_core.cpu_kernels.bfloat16 import DTYPES, array, exp, narrow, widen
from masc_core.numba_jit import njit_parallel, njit_reassociated, njit_serial, start_threads

# Where numba finds neither OpenMP nor TBB, its own threads serve one caller; a second one, while a
# worker makes another version ready, would end the process.
_parallel = threading.Lock()


def attend(
    qkv: Tensor, cos_sin: Tensor, slots: Tensor, positions: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Rotate and store what is new, and attend, as `kv_cache.attention_reference` does.

    All tensors are contiguous; ``qkv``, ``keys`` and ``values`` are of one type of ``DTYPES``.
    """
    num_slots, num_heads, length, head_dim = keys.shape
    num_rows = qkv.shape[0]
    out = torch.empty(num_rows, num_heads, head_dim, dtype=qkv.dtype)
    addresses = (
        *(qkv.data_ptr(), cos_sin.data_ptr(), slots.data_ptr(), positions.data_ptr()),
        *(keys.data_ptr(), values.data_ptr(), out.data_ptr()),
    )
    sizes = num_rows, num_heads, head_dim, num_slots, length
    dtype = DTYPES[qkv.dtype]
    num_threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    if num_threads == 1:  # to begin a parallel loop takes as long as a small model's attention
        _attend(dtype, addresses, sizes)
    else:
        start_threads()
        with _parallel:
            numba.set_num_threads(num_threads)  # as many as torch has
            _attend_in_parallel(dtype, addresses, sizes)
    return out


@njit_serial
def _attend(dtype, addresses, sizes):
    qkv, cos_sin, slots, positions, keys, values, out = _arrays(dtype, addresses, sizes)
    for row in range(sizes[0]):
        for head in range(sizes[1]):
            _attend_one(row, head, qkv, cos_sin, slots, positions, keys, values, out)


@njit_parallel
def _attend_in_parallel(dtype, addresses, sizes):
    qkv, cos_sin, slots, positions, keys, values, out = _arrays(dtype, addresses, sizes)
    num_heads = sizes[1]
    for task in numba.prange(sizes[0] * num_heads):
        row, head = task // num_heads, task % num_heads
        _attend_one(row, head, qkv, cos_sin, slots, positions, keys, values, out)


@njit_serial
def _arrays(dtype, addresses, sizes):
    num_rows, num_heads, head_dim, num_slots, length = sizes
    qkv, cos_sin, slots, positions, keys, values, out = addresses
    cache = (num_slots, num_heads, length, head_dim)
    return (
        array(qkv, (num_rows, 3 * num_heads, head_dim), dtype),
        array(cos_sin, (num_rows, 2, head_dim), np.float32),
        array(slots, (num_rows,), np.int64),
        array(positions, (num_rows,), np.int64),
        array(keys, cache, dtype),
        array(values, cache, dtype),
        array(out, (num_rows, num_heads, head_dim), dtype),
    )


@njit_serial
def _attend_one(row, head, qkv, cos_sin, slots, positions, keys, values, out):
    """All that is done for one row and one head."""
    num_heads, head_dim = out.shape[1:]
    position = positions[row]
    past_keys, past_values = keys[slots[row], head], values[slots[row], head]  # (T, D)
    _rotate(qkv[row, num_heads + head], cos_sin[row], past_keys[position])
    past_values[position] = qkv[row, 2 * num_heads + head]
    _rotate(qkv[row, head], cos_sin[row], out[row, head])  # rounded as keys are
    query = np.empty(head_dim, np.float32)
    scale = np.float32(1.0 / math.sqrt(head_dim))
    for d in range(head_dim):
        query[d] = widen(out[row, head, d]) * scale
    weights = np.empty(position + 1, np.float32)
    highest = np.float32(-np.inf)
    for t in range(position + 1):
        weights[t] = _dot(query, past_keys[t])
        highest = max(highest, weights[t])
    for t in range(position + 1):
        weights[t] = exp(weights[t] - highest)
    total = _sum(weights)
    attended = np.zeros(head_dim, np.float32)
    for t in range(position + 1):
        weight = weights[t]
        for d in range(head_dim):
            attended[d] += weight * widen(past_values[t, d])
    for d in range(head_dim):
        out[row, head, d] = narrow(attended[d] / total, out[row, head, d])


@njit_serial
def _rotate(vector, cos_sin, rotated):
    """Rotate pairs of numbers (D,) as `masc_core.models.rope.apply_rope` does."""
    for pair in range(0, len(vector), 2):
        a, b = widen(vector[pair]), widen(vector[pair + 1])
        first = a * cos_sin[0, pair] + b * cos_sin[1, pair]
        second = b * cos_sin[0, pair + 1] + a * cos_sin[1, pair + 1]
        rotated[pair] = narrow(first, rotated[pair])
        rotated[pair + 1] = narrow(second, rotated[pair + 1])


@njit_reassociated
def _dot(query, key):
    total = np.float32(0)
    for d in range(len(query)):
        total += query[d] * widen(key[d])
    return total


@njit_reassociated
def _sum(numbers):
    total = np.float32(0)
    for number in numbers:
        total += number
    return total
