"""Philox-4x32-10 as a loop over counters; see `masc_core.sampling.rng`."""

# ruff: noqa: ANN001
# mypy: allow-untyped-defs, allow-untyped-calls

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from masc_core.cpu_kernels.bfloat16 import array
from masc_core.numba_jit import njit_serial

_FACTOR_0, _FACTOR_2 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_MASK, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_ROUNDS = 10


def random_bits(seeds: Tensor, positions: Tensor, num: int, stream: int) -> Tensor:
    """Words (B, num) for contiguous int64 (B,); see `masc_core.sampling.rng.random_bits`."""
    num_blocks = -(-num // 4)
    words = torch.empty(len(seeds), 4 * num_blocks, dtype=torch.int64)
    addresses = seeds.data_ptr(), positions.data_ptr(), words.data_ptr()
    _fill(addresses, len(seeds), num_blocks, stream)
    return words[:, :num]


@njit_serial
def _fill(addresses, num_images, num_blocks, stream):
    seeds = array(addresses[0], (num_images,), np.uint64)
    positions = array(addresses[1], (num_images,), np.uint64)
    words = array(addresses[2], (num_images, num_blocks, 4), np.uint64)
    for image in range(num_images):
        for block in range(num_blocks):
            c0, c1 = np.uint64(block), positions[image]
            c2, c3 = np.uint64(stream), np.uint64(0)
            k0, k1 = seeds[image] & _MASK, seeds[image] >> _HALF
            for _ in range(_ROUNDS):
                product_0, product_2 = c0 * _FACTOR_0, c2 * _FACTOR_2
                c0, c1 = (product_2 >> _HALF) ^ c1 ^ k0, product_2 & _MASK
                c2, c3 = (product_0 >> _HALF) ^ c3 ^ k1, product_0 & _MASK
                k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
            words[image, block, 0], words[image, block, 1] = c0, c1
            words[image, block, 2], words[image, block, 3] = c2, c3
