"""Random numbers that belong to an image: Philox-4x32-10, a counter-based generator.

The word is a function of (seed, stream, position, index) and of nothing else, so an image's draws
are the same whatever else is in the batch, on every device: they are integer arithmetic.
Key: the seed's low and high 32 bits. Counter: (index // 4, position, stream, 0), four words each.

Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3. SC 2011.

Legend: B images, N numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Streams keep the draws of one (seed, position) apart.
CLUSTER, CODE = 0, 1

PhiloxWords = tuple[Tensor, Tensor, Tensor, Tensor]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_ROUNDS = 10


def philox4x32(counter: PhiloxWords, key: tuple[Tensor, Tensor]) -> PhiloxWords:
    """Ten rounds of the Philox bijection; all int64 in [0, 2^32), of shapes that broadcast."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def random_bits(seeds: Tensor, position: int | Tensor, num: int, stream: int) -> Tensor:
    """Uniform 32-bit words, int64 (B, N).

    Parameters
    ----------
    seeds : int64 (B,), all 64 bits count
    position : in the image, in [0, 2^32), one for all or int64 (B,)
    num : N, words for each image; the first n are the same for any N >= n
    stream : ``CLUSTER`` or ``CODE``
    """
    if seeds.device.type == "cpu" and not torch.compiler.is_compiling():
        from masc_core.cpu_kernels import philox  # noqa: PLC0415 - takes half a second

        positions = torch.as_tensor(position, dtype=torch.int64).expand(len(seeds)).contiguous()
        return philox.random_bits(seeds.contiguous(), positions, num, stream)
    # The mask changes nothing but what a compiler makes of the first product: it multiplies bare
    # indices by the constant in 32 bits, where that does not fit.
    blocks = torch.arange(-(-num // 4), device=seeds.device) & _MASK  # (ceil(N / 4),)
    positions = torch.as_tensor(position, dtype=torch.int64, device=seeds.device)
    # Filled on the device: a copy of a number from the host could not be part of a captured graph.
    constants = seeds.new_full((), stream), seeds.new_zeros(())
    counter = (blocks, positions.view(-1, 1), *constants)
    key = ((seeds & _MASK)[:, None], (seeds >> 32 & _MASK)[:, None])
    words = torch.stack(philox4x32(counter, key), dim=-1)  # (B, ceil(N / 4), 4)
    return words.flatten(1)[:, :num]


def gumbel(seeds: Tensor, position: int | Tensor, num: int) -> Tensor:
    """Gumbel noise ``-log(-log u)`` of the stream ``CLUSTER``, ``u = (word + 1/2) / 2^32``.

    float32 (B, num), in [-3.2, 22.9]; arguments as for `random_bits`.
    """
    uniform = (random_bits(seeds, position, num, CLUSTER).double() + 0.5) * 2.0**-32  # exact
    # Logarithms differ by an ulp between devices; rounding float64 to float32 hides that.
    return uniform.log().neg().log().neg().float()


def code_bits(seeds: Tensor, position: int | Tensor) -> Tensor:
    """One word of the stream ``CODE`` an image, int64 (B,); arguments as for `random_bits`."""
    return random_bits(seeds, position, 1, CODE).squeeze(1)


def _multiply(factor: int, words: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of 64-bit products.

    Products of 2^63 and more wrap to negative numbers, which have the same 64 bits: the masks
    remove the sign that the shift copies.
    """
    product = words * factor
    return product >> 32 & _MASK, product & _MASK
