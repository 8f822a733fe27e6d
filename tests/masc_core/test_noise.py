from __future__ import annotations

import pytest
import torch

from masc_core import noise as noise_module
from masc_core.noise import Noise
from masc_core.philox import code_bits, gumbel


@pytest.mark.parametrize("at_once", [1, 100, 1 << 17])
def test_numbers_made_ahead_are_those_of_the_position(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise_module, "AT_ONCE", at_once)
    noise = Noise(9)
    seeds, positions = torch.tensor([5, 2**63 - 1, 0]), torch.tensor([0, 7, 3])
    for step in range(30):
        if step in {4, 5, 20}:  # images leave and join
            noise.forget()
            seeds, positions = seeds.roll(1)[: 2 + step % 2], positions.roll(1)[: 2 + step % 2]
        made, bits = noise.of(seeds, positions)
        assert torch.equal(made, gumbel(seeds, positions, 9))
        assert torch.equal(bits, code_bits(seeds, positions))
        assert torch.equal(noise.of(seeds, positions)[1], bits)
        noise.advance()
        positions = positions + 1
