from __future__ import annotations

from itertools import combinations
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from scipy.cluster import hierarchy

from masc_core.arrays import FloatArray
from masc_core.clustering.centroid_linkage import centroid_linkage
from masc_core.semantic_tree import cut_merges
from tests.masc_core.clustering.codebooks import clustered_rows, codebooks

Merge = tuple[float, ...]


def merge_list(merges: FloatArray) -> list[Merge]:
    return [tuple(merge) for merge in merges.tolist()]


def plain_loop(rows: FloatArray) -> list[Merge]:
    """All pairs at every merge: the lowest distance, then the lowest node, then its partner."""
    points, sizes = dict(enumerate(rows.tolist())), dict.fromkeys(range(len(rows)), 1)
    merges: list[Merge] = []
    while len(points) > 1:
        pairs = combinations(sorted(points), 2)
        squared = {
            (a, b): sum((x - y) * (x - y) for x, y in zip(points[a], points[b], strict=True))
            for a, b in pairs
        }
        (a, b), lowest = min(squared.items(), key=lambda item: (item[1], item[0]))
        size, joined = sizes[a] + sizes[b], len(rows) + len(merges)
        weight = sizes[b] / size
        first, second = points.pop(a), points.pop(b)
        points[joined] = [x + weight * (y - x) for x, y in zip(first, second, strict=True)]
        sizes[joined] = size
        merges.append((a, b, sqrt(lowest), size))
    return merges


@settings(max_examples=200, deadline=None)
@given(codebooks(max_rows=16))
def test_merges_are_those_of_the_plain_loop(rows: FloatArray) -> None:
    assert merge_list(centroid_linkage(rows)) == plain_loop(rows)


@settings(max_examples=200, deadline=None)
@given(codebooks())
def test_every_merge_is_a_true_minimum_at_its_moment(rows: FloatArray) -> None:
    clusters = {i: [i] for i in range(len(rows))}
    for i, (a, b, height, size) in enumerate(merge_list(centroid_linkage(rows))):
        means = {node: rows[members].mean(axis=0) for node, members in clusters.items()}
        pairs = combinations(means.values(), 2)
        closest = min(float(np.linalg.norm(x - y)) for x, y in pairs)
        merged = float(np.linalg.norm(means[int(a)] - means[int(b)]))
        assert merged == pytest.approx(closest, rel=1e-9, abs=1e-12)
        assert height == pytest.approx(closest, rel=1e-9, abs=1e-12)
        clusters[len(rows) + i] = clusters.pop(int(a)) + clusters.pop(int(b))
        assert size == len(clusters[len(rows) + i])
    assert len(clusters) == 1


@pytest.mark.parametrize("num_rows", [2, 3, 17, 300, 1000])
def test_merges_are_scipys(num_rows: int) -> None:
    rows = clustered_rows(num_rows)
    merges, oracle = centroid_linkage(rows), hierarchy.linkage(rows, "centroid")
    assert np.array_equal(merges[:, [0, 1, 3]], oracle[:, [0, 1, 3]])
    np.testing.assert_allclose(merges[:, 2], oracle[:, 2], rtol=1e-9)
    assert num_rows < 300 or (np.diff(merges[:, 2]) < 0).any()


def test_a_height_can_fall() -> None:
    triangle = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.9]])
    merges = centroid_linkage(triangle)
    assert merge_list(merges) == [(0, 1, 1.0, 2), (2, 3, 0.9, 3)]
    # A threshold between the heights would find the second merge without the first.
    assert cut_merges(merges, 2).labels.tolist() == [0, 0, 1]


def test_of_equally_near_pairs_the_lowest_nodes_merge() -> None:
    corners = np.array([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    merges = merge_list(centroid_linkage(corners))
    assert merges == [(0, 2, 1.0, 2), (1, 3, 1.0, 2), (4, 5, 1.0, 4)]


def test_thousands_of_equal_rows() -> None:
    merges = centroid_linkage(np.full((5_000, 3), 0.1))
    assert not merges[:, 2].any()
    assert merge_list(merges[:3]) == [(0, 1, 0, 2), (2, 3, 0, 2), (4, 5, 0, 2)]
    assert [cut_merges(merges, k).num_clusters for k in (1, 77, 5_000)] == [1, 77, 5_000]


def test_thousands_of_rows_of_which_few_differ() -> None:
    rng = np.random.default_rng(0)
    distinct = rng.normal(size=(7, 4))
    which = np.concatenate([np.arange(7), rng.integers(0, 7, 4_993)])
    merges = centroid_linkage(distinct[which])
    assert not merges[:-6, 2].any()
    assert merges[-6:, 2].all()
    assert np.array_equal(cut_merges(merges, 7).labels, which)


@pytest.mark.parametrize("exponent", [-900, 900])
def test_the_unit_of_the_rows_changes_only_heights(exponent: int) -> None:
    rows = np.random.default_rng(3).normal(size=(40, 3))
    expected = centroid_linkage(rows)
    expected[:, 2] = np.ldexp(expected[:, 2], exponent)
    assert np.array_equal(centroid_linkage(np.ldexp(rows, exponent)), expected)


@settings(max_examples=100, deadline=None)
@given(codebooks(max_rows=20))
def test_cuts_are_exact_and_nested(rows: FloatArray) -> None:
    merges = centroid_linkage(rows)
    priors = [cut_merges(merges, k) for k in range(1, len(rows) + 1)]
    for num_clusters, prior in enumerate(priors, start=1):
        assert prior.num_clusters == num_clusters
        finer = priors[min(num_clusters, len(rows) - 1)]
        pairs = set(zip(finer.labels.tolist(), prior.labels.tolist(), strict=True))
        assert len(pairs) == finer.num_clusters


@pytest.mark.parametrize("num_clusters", [0, 6])
def test_k_outside_the_codes_is_refused(num_clusters: int) -> None:
    with pytest.raises(ValueError, match=rf"K must be in 1\.\.5, got {num_clusters}"):
        cut_merges(centroid_linkage(np.eye(5)), num_clusters)
