from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from masc_core.sampling.rng import CLUSTER, CODE, gumbel, philox4x32, random_bits

WORD = st.integers(0, 2**32 - 1)
SEED = st.integers(0, 2**63 - 1)
Block = tuple[int, int, int, int]


def philox_in_integers(counter: Block, key: tuple[int, int]) -> Block:
    """The published rounds, in integers without bounds."""
    (x0, x1, x2, x3), (k0, k1) = counter, key
    for _ in range(10):
        first, second = 0xD2511F53 * x0, 0xCD9E8D57 * x2
        x0, x1 = (second >> 32) ^ x1 ^ k0, second % 2**32
        x2, x3 = (first >> 32) ^ x3 ^ k1, first % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return x0, x1, x2, x3


def philox_in_tensors(counter: Block, key: tuple[int, int]) -> Block:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    w0, w1, w2, w3 = philox4x32((c0, c1, c2, c3), (torch.tensor([key[0]]), torch.tensor([key[1]])))
    return int(w0), int(w1), int(w2), int(w3)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter: Block, key: tuple[int, int], expected: Block) -> None:
    assert philox_in_tensors(counter, key) == expected
    assert philox_in_integers(counter, key) == expected


@settings(deadline=None)
@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_rounds_are_the_published_ones(counter: Block, key: tuple[int, int]) -> None:
    assert philox_in_tensors(counter, key) == philox_in_integers(counter, key)


@settings(deadline=None)
@given(
    st.lists(st.tuples(SEED, st.integers(0, 1023)), min_size=1, max_size=5),
    st.integers(1, 10),
    st.sampled_from([CLUSTER, CODE]),
)
def test_words_are_the_counters_blocks(rows: list[tuple[int, int]], num: int, stream: int) -> None:
    seeds, positions = torch.tensor(rows).unbind(1)
    words = random_bits(seeds, positions, num, stream)
    assert words.dtype == torch.int64
    for row, (seed, position) in enumerate(rows):
        key = (seed % 2**32, seed >> 32)
        blocks = [
            philox_in_integers((block, position, stream, 0), key) for block in range((num + 3) // 4)
        ]
        assert words[row].tolist() == [word for block in blocks for word in block][:num]
        alone = random_bits(seeds[row : row + 1], position, num, stream)
        assert torch.equal(alone[0], words[row])


def test_negative_seeds_are_their_64_bits() -> None:
    words = random_bits(torch.tensor([-1]), 2, 4, CODE)
    assert tuple(words[0].tolist()) == philox_in_integers((0, 2, CODE, 0), (2**32 - 1, 2**32 - 1))


def test_words_are_uniform_and_streams_apart() -> None:
    seeds = torch.arange(500)
    words = {stream: random_bits(seeds, 9, 100, stream).flatten() for stream in (CLUSTER, CODE)}
    for values in words.values():
        assert stats.kstest(values.numpy() / 2**32, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(words[CLUSTER].numpy(), words[CODE].numpy())[0, 1]
    assert abs(correlation) < 0.02


def test_gumbel_noise() -> None:
    seeds = torch.arange(500)
    noise = gumbel(seeds, 3, 101)
    assert noise.dtype == torch.float32
    assert noise.shape == (500, 101)
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    words = random_bits(seeds, 3, 101, CLUSTER).numpy()
    np.testing.assert_allclose(noise, -np.log(-np.log((words + 0.5) / 2**32)), rtol=1e-6)


@pytest.mark.gpu
def test_gpu_makes_the_same_numbers() -> None:
    seeds = torch.randint(2**62, (64,), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(64)
    words = random_bits(seeds.cuda(), positions.cuda(), 4096, CLUSTER)
    assert torch.equal(words.cpu(), random_bits(seeds, positions, 4096, CLUSTER))
    noise = gumbel(seeds.cuda(), positions.cuda(), 4096)
    assert torch.equal(noise.cpu(), gumbel(seeds, positions, 4096))


def test_what_a_compiler_sees_makes_the_same_numbers() -> None:
    seeds = torch.tensor([0, -1, 2**40 + 3])
    positions = torch.tensor([0, 7, 2**32 - 1])
    traced = torch.compile(random_bits, backend="eager", fullgraph=True, dynamic=False)
    words = traced(seeds, positions, 101, CODE)
    assert torch.equal(words, random_bits(seeds, positions, 101, CODE))
