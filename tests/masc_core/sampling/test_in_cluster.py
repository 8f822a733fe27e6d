from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from masc_core.arrays import IntArray
from masc_core.errors import InvalidFieldError
from masc_core.prior import ClusterMap
from masc_core.sampling.in_cluster import DECODING_IDS, FREQUENCY, UNIFORM, CodeSampler
from masc_core.sampling.params import SamplingSettings
from masc_core.sampling.rng import CODE, code_bits, random_bits
from tests.tiny_bundle import tiny_parts


def skewed_prior() -> ClusterMap:
    """Sizes as a codebook of uneven density gives them, 64 % singletons and one cluster of 586."""
    sizes = [586] + [4] * 1_711 + [3] * 1_237 + [1] * 5_243
    ids = np.repeat(np.arange(len(sizes)), sizes)
    return ClusterMap.from_labels(np.random.default_rng(0).permutation(ids))


def draw_in_integers(
    prior: ClusterMap, counts: list[int], cluster: int, bits: int, mode: int
) -> int:
    """Draw as the definition says, in integers without bounds."""
    members = [code for code, label in enumerate(prior.labels.tolist()) if label == cluster]
    ends = list(accumulate(counts[code] for code in members))
    if mode == FREQUENCY and ends[-1]:
        return members[bisect_right(ends, bits * ends[-1] >> 32)]
    return members[bits * len(members) >> 32]


def rows(num: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 2**63 - 1, (num,), generator=torch.Generator().manual_seed(seed))


def decodings_of(rng: np.random.Generator, num: int) -> torch.Tensor:
    return torch.from_numpy(rng.integers(0, 2, num))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=30),
    st.integers(0, 2**32 - 1),
)
def test_every_row_is_the_plain_integer_draw(codes: list[tuple[int, int]], seed: int) -> None:
    prior = ClusterMap.from_labels([label for label, _ in codes])
    counts = [max(count - 4, 0) for _, count in codes]
    rng = np.random.default_rng(seed)
    clusters = torch.from_numpy(rng.integers(0, prior.num_clusters, 64))
    seeds, decodings = rows(64, seed), decodings_of(rng, 64)
    drawn = CodeSampler(prior, counts).sample_code(clusters, code_bits(seeds, 7), decodings)
    bits = random_bits(seeds, 7, 1, CODE)[:, 0]
    assert drawn.dtype == torch.int64
    assert drawn.tolist() == [
        draw_in_integers(prior, counts, *row)
        for row in zip(clusters.tolist(), bits.tolist(), decodings.tolist(), strict=True)
    ]


def test_skewed_clusters() -> None:
    prior = skewed_prior()
    assert (prior.num_codes, prior.num_clusters, prior.sizes.max()) == (16_384, 8_192, 586)
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 3, prior.num_codes) * rng.integers(0, 10_000, prior.num_codes)
    num = 3 * prior.num_clusters
    clusters = torch.arange(num) % prior.num_clusters
    decodings = decodings_of(rng, num)
    codes = (
        CodeSampler(prior, counts).sample_code(clusters, code_bits(rows(num), 0), decodings).numpy()
    )
    assert np.array_equal(prior.encode(codes), clusters.numpy())
    totals = np.bincount(prior.labels, weights=counts)[clusters]
    assert (counts[codes][(decodings.numpy() == FREQUENCY) & (totals > 0)] > 0).all()


def chi_square_p(codes: torch.Tensor, expected: IntArray) -> float:
    observed = np.bincount(codes.numpy(), minlength=len(expected))
    assert not observed[expected == 0].any()
    shares = expected[expected > 0] / expected.sum()
    return float(stats.chisquare(observed[expected > 0], shares * len(codes)).pvalue)


@pytest.mark.parametrize("decoding", ["uniform", "frequency"])
def test_distribution(decoding: str) -> None:
    counts = np.array([5, 0, 1, 90, 300, 4, 0, 77])
    code_sampler = CodeSampler(ClusterMap(np.zeros(8, np.int64)), counts)
    num = 20_000
    clusters = torch.zeros(num, dtype=torch.int64)
    decodings = torch.full((num,), DECODING_IDS[decoding])
    expected = counts if decoding == "frequency" else np.ones(8, np.int64)
    by_seed = code_sampler.sample_code(clusters, code_bits(torch.arange(num), 3), decodings)
    assert chi_square_p(by_seed, expected) > 1e-3
    one_seed = torch.full((num,), 11)
    by_position = code_sampler.sample_code(
        clusters, code_bits(one_seed, torch.arange(num)), decodings
    )
    assert chi_square_p(by_position, expected) > 1e-3


@pytest.mark.parametrize("mode", [UNIFORM, FREQUENCY])
def test_identity_prior_returns_the_cluster(mode: int) -> None:
    clusters = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    code_sampler = CodeSampler(ClusterMap.identity(100), np.arange(100))
    codes = code_sampler.sample_code(clusters, code_bits(rows(100), 5), torch.full((100,), mode))
    assert torch.equal(codes, clusters)


def test_clusters_without_counts_fall_back_to_uniform() -> None:
    prior = ClusterMap(np.repeat(np.arange(2), 4))
    code_sampler = CodeSampler(prior, [0, 0, 0, 0, 0, 3, 0, 0])
    clusters = torch.arange(2000) % 2
    seeds = rows(2000)
    by_count, uniform = (
        code_sampler.sample_code(clusters, code_bits(seeds, 0), torch.full((2000,), decoding))
        for decoding in (FREQUENCY, UNIFORM)
    )
    assert torch.equal(by_count[::2], uniform[::2])
    assert set(uniform[::2].tolist()) == {0, 1, 2, 3}
    assert set(by_count[1::2].tolist()) == {5}


def test_draw_belongs_to_seed_and_position_whatever_the_batch() -> None:
    prior = ClusterMap(np.arange(1000) % 10)
    code_sampler = CodeSampler(prior, np.arange(1000) % 7)
    rng = np.random.default_rng(2)
    clusters = torch.from_numpy(rng.integers(0, 10, 40))
    seeds, positions, decodings = rows(40), torch.arange(40), decodings_of(rng, 40)
    together = code_sampler.sample_code(clusters, code_bits(seeds, positions), decodings)
    order = torch.from_numpy(rng.permutation(40))
    shuffled = code_sampler.sample_code(
        clusters[order], code_bits(seeds[order], positions[order]), decodings[order]
    )
    assert torch.equal(shuffled, together[order])
    for i in range(40):
        alone = code_sampler.sample_code(
            clusters[i : i + 1], code_bits(seeds[i : i + 1], i), decodings[i : i + 1]
        )
        assert alone.tolist() == together[i : i + 1].tolist()


@pytest.mark.parametrize(
    "counts",
    [
        [2**30, 2**30, 1, 0],
        [2**31 - 1, 1, 0, 0],
        [2**62, 2**62, 2**62, 2**62],  # their sum exceeds int64
        [2**63 - 1, 0, 5, 0],
        [2**40, 2**41, 2**42, 0],
    ],
)
def test_huge_counts_keep_their_shares(counts: list[int]) -> None:
    code_sampler = CodeSampler(ClusterMap(np.zeros(4, np.int64)), counts)
    num = 4096
    codes = code_sampler.sample_code(
        torch.zeros(num, dtype=torch.int64),
        code_bits(torch.arange(num), 0),
        torch.full((num,), FREQUENCY),
    )
    shares = np.bincount(codes.numpy(), minlength=4) / num
    np.testing.assert_allclose(shares, np.array(counts) / sum(counts), atol=0.03)
    assert not shares[np.array(counts) == 0].any()


def test_empty_batch() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    code_sampler = CodeSampler(ClusterMap.identity(3), [1, 1, 1])
    assert code_sampler.sample_code(nothing, code_bits(nothing, 0), nothing).shape == (0,)


def test_only_decodings_that_are_offered_pass() -> None:
    prior = ClusterMap.identity(3)
    counted, plain = CodeSampler(prior, [1, 2, 3]), CodeSampler(prior)
    assert counted.decodings == ("uniform", "frequency")
    counted.check(SamplingSettings(decoding="frequency"))
    assert plain.decodings == ("uniform",)
    with pytest.raises(InvalidFieldError, match="must be 'uniform', got 'frequency'") as caught:
        plain.check(SamplingSettings(decoding="frequency"))
    assert caught.value.field == "decoding"
    best: Any = "best"
    with pytest.raises(InvalidFieldError, match="must be 'uniform' or 'frequency', got 'best'"):
        counted.check(SamplingSettings(decoding=best))
    with pytest.raises(InvalidFieldError, match="must be 'uniform', got 'refine'"):
        _ = plain.refiner
    refiner = tiny_parts(refiner=True).refiner
    refined = CodeSampler(prior, refiner=refiner)
    assert refined.decodings == ("uniform", "refine")
    assert refined.refiner is refiner


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1, 2], "counts must be 3 integers"),
        ([[1, 2, 3]], "counts must be 3 integers"),
        ([1.0, 2.0, 3.0], "counts must be 3 integers, got float64"),
        ([1, 2, -3], "code 2 has a negative count"),
    ],
)
def test_bad_counts_are_refused(counts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodeSampler(ClusterMap.identity(3), counts)


@pytest.mark.gpu
def test_gpu_draws_the_same_codes() -> None:
    prior = skewed_prior()
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 1000, prior.num_codes)
    clusters = torch.from_numpy(rng.integers(0, prior.num_clusters, 5000))
    bits = code_bits(rows(5000), torch.arange(5000) % 256)
    arguments = (clusters, bits, decodings_of(rng, 5000))
    expected = CodeSampler(prior, counts).sample_code(*arguments)
    on_gpu = CodeSampler(prior, counts, "cuda")
    drawn = on_gpu.sample_code(*(part.cuda() for part in arguments))
    assert torch.equal(drawn.cpu(), expected)
