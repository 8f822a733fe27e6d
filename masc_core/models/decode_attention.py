"""Attention of one new position a row, as one Triton kernel: rotate, store, attend.

A program has one row and one head. It rotates the row's query and key, stores key and value, and
goes through the row's own positions in blocks, with the running maximum m and the running sum l of
Milakov and Gimelshein: Online normalizer calculation for softmax, 2018. All sums are float32 and in
an order that depends on the row's position alone, so a row has the same bits in any batch.
Same function as `masc_core.models.kv_cache.attention_reference`; importing this needs Triton.

Legend: S slots, R rows, T positions, H heads, D head dim.
"""

# Triton's language has no types, and the sizes of its kernels are written in capitals.
# ruff: noqa: ANN001, ANN202, ARG001, N803, PLR0913, PLR0917
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

NUM_WARPS = 4
BLOCK_BYTES = 16384  # of keys that a program loads at once, and of values; 128 bytes a thread each


def block_size(dim: int, dtype: torch.dtype) -> int:
    """Positions that a program takes at once, a power of two.

    A constant of the model, not tuned by the clock: in other blocks sums have other bits. Half of
    ``BLOCK_BYTES`` would wait for memory twice as often; with twice as much a multiprocessor has
    registers for fewer programs, and with four times a program has too few.
    """
    width: int = triton.next_power_of_2(dim)
    return min(BLOCK_BYTES // (width * dtype.itemsize), max(16, 2 * width))


@torch.library.custom_op("masc::attend", mutates_args=("keys", "values"))
def attend(
    qkv: Tensor, cos_sin: Tensor, slots: Tensor, positions: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Rotate and store what is new, and attend, as `kv_cache.attention_reference` does."""
    num_heads, length, dim = keys.shape[1:]
    out = torch.empty(len(qkv), num_heads, dim, dtype=qkv.dtype, device=qkv.device)
    _kernel[len(qkv), num_heads](
        qkv.contiguous(),
        cos_sin.contiguous(),
        slots,
        positions,
        keys,
        values,
        out,
        dim**-0.5,
        H=num_heads,
        T=length,
        D=dim,
        WIDTH=triton.next_power_of_2(dim),
        BLOCK=block_size(dim, keys.dtype),
        num_warps=NUM_WARPS,
    )
    return out


@attend.register_fake
def _(
    qkv: Tensor, cos_sin: Tensor, slots: Tensor, positions: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    return qkv.new_empty(qkv.shape[0], keys.shape[1], keys.shape[3])


@triton.jit
def _rotated(vector, channel, cos, sin, in_head):
    """Rotate the pairs of the D numbers at ``vector``, and round as they are stored."""
    x = tl.load(vector + channel, mask=in_head, other=0.0)
    partner = tl.load(vector + (channel ^ 1), mask=in_head, other=0.0)  # the other one of the pair
    rotated = x.to(tl.float32) * cos + partner.to(tl.float32) * sin
    return rotated.to(x.dtype)


@triton.jit
def _kernel(
    qkv,
    cos_sin,
    slots,
    positions,
    keys,
    values,
    out,
    scale,
    H: tl.constexpr,
    T: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,  # D rounded up to a power of two
    BLOCK: tl.constexpr,
):
    row, head = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, WIDTH)
    in_head = channel < D
    cos = tl.load(cos_sin + row * 2 * D + channel, mask=in_head, other=0.0)
    sin = tl.load(cos_sin + row * 2 * D + D + channel, mask=in_head, other=0.0)
    new = qkv + (row * 3 * H + head) * D
    query = _rotated(new, channel, cos, sin, in_head).to(tl.float32) * scale
    key = _rotated(new + H * D, channel, cos, sin, in_head)
    value = tl.load(new + 2 * H * D + channel, mask=in_head, other=0.0)
    position = tl.load(positions + row)
    past = (tl.load(slots + row) * H + head) * T * D
    tl.store(keys + past + position * D + channel, key, mask=in_head)
    tl.store(values + past + position * D + channel, value, mask=in_head)

    # The new position comes from registers: other threads need not see what was just stored.
    m = tl.sum(query * key.to(tl.float32))
    l = tl.exp(m - m)  # noqa: E741 - the paper's name; a one of m's type
    attended = value.to(tl.float32)
    for start in range(0, position, BLOCK):
        time = start + tl.arange(0, BLOCK)
        before = (time < position)[:, None] & in_head[None, :]
        offsets = past + time[:, None] * D + channel[None, :]
        key_block = tl.load(keys + offsets, mask=before, other=0.0)
        # Before the scores, whose sums are a barrier: both are on their way at the same time.
        value_block = tl.load(values + offsets, mask=before, other=0.0)
        products = tl.sum(key_block.to(tl.float32) * query[None, :], 1)
        scores = tl.where(time < position, products, float("-inf"))
        highest = tl.maximum(m, tl.max(scores))
        weights = tl.exp(scores - highest)
        block_sum = tl.sum(weights[:, None] * value_block.to(tl.float32), 0)
        attended = attended * tl.exp(m - highest) + block_sum
        l = l * tl.exp(m - highest) + tl.sum(weights)  # noqa: E741
        m = highest
    result = (attended / l).to(value.dtype)
    tl.store(out + (row * H + head) * D + channel, result, mask=in_head)
