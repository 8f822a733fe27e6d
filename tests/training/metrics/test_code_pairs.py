from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from masc_core.prior import ClusterMap
from training.data.code_cache import CodeCache
from training.metrics.code_pairs import cluster_pairs, code_counts, count_cached_pairs, count_pairs


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
