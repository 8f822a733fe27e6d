from __future__ import annotations

import pytest
import torch

from masc_core.cpu_kernels.philox import random_bits
from masc_core.sampling import rng


@pytest.mark.parametrize("num", [1, 4, 7, 1024])
@pytest.mark.parametrize("stream", [rng.CLUSTER, rng.CODE])
def test_words_are_those_of_the_operators(num: int, stream: int) -> None:
    seeds = torch.tensor([0, 1, 2**63 - 1, 2**40 + 17, 2**32])
    positions = torch.tensor([0, 255, 3, 2**32 - 1, 77])
    blocks = torch.arange(-(-num // 4))
    counter = blocks, positions[:, None], torch.tensor(stream), torch.tensor(0)
    key = (seeds & 0xFFFFFFFF)[:, None], (seeds >> 32)[:, None]
    words = torch.stack(rng.philox4x32(counter, key), dim=-1).flatten(1)[:, :num]
    assert torch.equal(random_bits(seeds, positions, num, stream), words)
