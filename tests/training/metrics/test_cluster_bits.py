from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array

from masc_core.prior import ClusterMap
from training.data.code_cache import CodeCache
from training.metrics.cluster_bits import (
    cluster_bits,
    cluster_pairs,
    code_counts,
    conditional_bits,
    count_cached_pairs,
    count_pairs,
    frequency_bits,
    uniform_bits,
    unigram_bits,
)

PRIOR = ClusterMap.from_labels([0, 0, 1, 2, 2, 2, 3, 3])
GENERATOR = np.random.default_rng(0)
STEPS = GENERATOR.choice([0, 1, 2, 5], (16, 6), p=[0.1, 0.6, 0.2, 0.1])  # so contexts tell much
FITTED, HELD_OUT = STEPS[:8].cumsum(axis=1) % 7, STEPS[8:].cumsum(axis=1) % 8  # 7 is never fitted


def test_conditional_bits_agree_with_the_plain_formula() -> None:
    fitted, held_out = PRIOR.encode(FITTED).tolist(), PRIOR.encode(HELD_OUT).tolist()
    tokens = [token for image in fitted for token in image]

    def unigram(after: int) -> float:
        return (tokens.count(after) + 0.5) / (len(tokens) + 4 / 2)

    def pairs_of(stream: list[list[int]]) -> list[tuple[int, int]]:
        return [pair for image in stream for pair in zip([4, *image], image, strict=False)]

    counts = Counter(pairs_of(fitted))
    context_counts = Counter(before for before, _ in pairs_of(fitted))

    def bits(stream: list[list[int]], a: float, left_out: int) -> float:
        total = 0.0
        for b, c in pairs_of(stream):
            n_bc, n_b = counts[b, c] - left_out, context_counts[b] - left_out
            total -= math.log2((n_bc + a * unigram(c)) / (n_b + a))
        return total / len(pairs_of(stream))

    best = min(np.geomspace(1e-3, 1e7, 2001), key=lambda a: bits(fitted, float(a), left_out=1))
    assert 0.01 < best < 1e5  # the likelihood has its maximum inside
    measured = cluster_bits(PRIOR, count_pairs(FITTED, 8), count_pairs(HELD_OUT, 8))
    expected = bits(held_out, float(best), left_out=0)
    assert measured.conditional == pytest.approx(expected, abs=1e-3)
    assert measured.conditional_ratio == pytest.approx(measured.conditional / 2)


@pytest.mark.parametrize("before", range(9))
def test_probabilities_after_any_context_sum_to_one(before: int) -> None:
    fitted = count_pairs(FITTED, 8)
    single = [coo_array(([1], ([before], [after])), shape=(9, 8)).tocsr() for after in range(8)]
    chances = [2 ** -conditional_bits(fitted, pair) for pair in single]
    assert sum(chances) == pytest.approx(1)
    assert min(chances) > 0


def test_a_context_that_tells_everything_and_one_that_tells_nothing() -> None:
    cycle = np.arange(64).reshape(1, -1) % 4
    pairs = count_pairs(np.repeat(cycle, 500, axis=0), 4)
    flat = cluster_bits(ClusterMap.identity(4), pairs, pairs)
    assert flat.unigram == pytest.approx(2, abs=1e-3)
    assert flat.conditional < 0.01
    noise = np.random.default_rng(1).integers(0, 4, (500, 64))
    flat = cluster_bits(ClusterMap.identity(4), count_pairs(noise, 4), count_pairs(noise, 4))
    assert flat.conditional == pytest.approx(2, abs=1e-2)


def test_a_context_seen_too_little_does_no_harm() -> None:
    generator = np.random.default_rng(3)
    fitted, held_out = generator.integers(0, 64, (20, 16)), generator.integers(0, 64, (200, 16))
    flat = cluster_bits(ClusterMap.identity(64), count_pairs(fitted, 64), count_pairs(held_out, 64))
    assert flat.conditional < flat.unigram + 0.01


def test_unigram_bits() -> None:
    bits = unigram_bits(np.array([3, 0, 1]), np.array([1, 1, 0]))
    assert bits == pytest.approx((math.log2(5.5 / 3.5) + math.log2(5.5 / 0.5)) / 2)


def test_bits_within_the_cluster() -> None:
    usage = np.array([1, 0, 5, 2, 0, 0, 0, 4])
    assert uniform_bits(PRIOR, usage) == pytest.approx((1 + 2 * math.log2(3) + 4) / 12)
    counts = np.array([3, 1, 9, 0, 0, 0, 7, 0])
    expected = math.log2(5 / 3.5) + 2 * math.log2(3) + 4 * math.log2(8 / 0.5)
    assert frequency_bits(PRIOR, counts, usage) == pytest.approx(expected / 12)


def test_every_figure_is_fitted_to_one_stream_and_measured_on_the_other() -> None:
    fitted, held_out = count_pairs(FITTED, 8), count_pairs(HELD_OUT, 8)
    measured = cluster_bits(PRIOR, fitted, held_out)
    counts, usage = (np.bincount(stream.ravel(), minlength=8) for stream in (FITTED, HELD_OUT))
    clusters, used = (np.bincount(PRIOR.encode(s).ravel()) for s in (FITTED, HELD_OUT))
    assert measured.unigram == pytest.approx(unigram_bits(clusters, used))
    assert measured.uniform == pytest.approx(uniform_bits(PRIOR, usage))
    assert measured.frequency == pytest.approx(frequency_bits(PRIOR, counts, usage))


def test_the_flat_vocabulary_leaves_nothing_to_the_cluster() -> None:
    fitted, held_out = count_pairs(FITTED, 8), count_pairs(HELD_OUT, 8)
    flat = cluster_bits(ClusterMap.identity(8), fitted, held_out)
    assert (flat.uniform, flat.frequency) == (0, 0)
    assert math.copysign(1, flat.uniform) == 1


def test_a_single_cluster_costs_no_cluster_bits() -> None:
    pairs = count_pairs(FITTED, 8)
    bits = cluster_bits(ClusterMap.from_labels([0] * 8), pairs, pairs)
    assert (bits.unigram, bits.conditional, bits.conditional_ratio) == (0, 0, 0)
    assert bits.uniform == 3


def test_with_much_data_cluster_and_code_bits_add_up_to_the_flat_ones() -> None:
    stream = np.random.default_rng(2).choice(
        8, (4000, 16), p=[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.05]
    )
    pairs = count_pairs(stream, 8)
    flat = cluster_bits(ClusterMap.identity(8), pairs, pairs)
    clustered = cluster_bits(PRIOR, pairs, pairs)
    assert clustered.unigram + clustered.frequency == pytest.approx(flat.unigram, abs=1e-4)


def counted_one_by_one(codes: np.ndarray, size: int) -> np.ndarray:
    pairs = Counter[tuple[int, int]]()
    for image in codes.tolist():
        pairs.update(zip([size, *image[:-1]], image, strict=True))
    table = np.zeros((size + 1, size), np.int64)
    for place, count in pairs.items():
        table[place] = count
    return table


@given(
    codes=st.integers(1, 5).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 6), min_size=n, max_size=n), max_size=6).map(
            lambda rows: np.array(rows, np.uint16).reshape(-1, n)
        )
    ),
    labels=st.lists(st.integers(0, 3), min_size=7, max_size=7),
)
def test_pairs_of_codes_and_of_clusters(codes: np.ndarray, labels: list[int]) -> None:
    pairs, prior = count_pairs(codes, 7), ClusterMap.from_labels(labels)
    assert np.array_equal(pairs.toarray(), counted_one_by_one(codes, 7))
    assert np.array_equal(code_counts(pairs), np.bincount(codes.ravel(), minlength=7))
    clusters = cluster_pairs(pairs, prior)
    expected = counted_one_by_one(prior.encode(codes), prior.num_clusters)
    assert np.array_equal(clusters.toarray(), expected)
    assert clusters.nnz == np.count_nonzero(expected)


def test_a_cache_counts_every_variant_of_every_shard(prepared: Path) -> None:
    cache = CodeCache.open(prepared / "codes-train")
    everyone = np.arange(len(cache))
    streams = [cache.take(everyone, np.full(len(cache), variant)) for variant in range(2)]
    expected = counted_one_by_one(np.concatenate(streams), 32)
    assert np.array_equal(count_cached_pairs(cache).toarray(), expected)
    assert len(cache.codes) > 1
