from __future__ import annotations

import numpy as np
import pytest

from masc_core.prior import ClusterMap
from training.metrics import cluster_statistics
from training.metrics.cluster_statistics import cluster_distances, cluster_sizes, code_probabilities

GENERATOR = np.random.default_rng(0)
ROWS = GENERATOR.normal(size=(12, 3))
PRIOR = ClusterMap.from_labels([0, 1, 0, 2, 0, 3, 3, 0, 4, 0, 1, 5])  # sizes 5, 2, 1, 2, 1, 1
USAGE = np.array([4, 0, 1, 7, 0, 2, 3, 1, 0, 0, 5, 1])
COUNTS = np.array([3, 2, 0, 0, 9, 0, 0, 1, 4, 1, 2, 8])


def test_sizes() -> None:
    sizes = cluster_sizes(PRIOR, USAGE)
    assert sizes.largest == 5
    assert sizes.mean == 2
    assert sizes.singleton_clusters == 3 / 6
    assert sizes.singleton_codes == 3 / 12
    assert sizes.singleton_usage == pytest.approx((7 + 0 + 1) / 24)
    assert sizes.largest_usage == pytest.approx((4 + 1 + 0 + 1 + 0) / 24)
    assert sizes.histogram == ((1, 3), (2, 2), (5, 1))


def test_effective_clusters_of_even_and_of_skewed_sizes() -> None:
    even = ClusterMap.from_labels(np.arange(12) // 3)
    assert cluster_sizes(even, USAGE).effective_clusters == pytest.approx(4)
    skewed = ClusterMap.from_labels([0] * 6 + [1] * 3 + [2] * 3)  # 1.5 bits
    assert cluster_sizes(skewed, USAGE).effective_clusters == pytest.approx(2**1.5)


def distance(a: int, b: int) -> float:
    return float(np.sqrt(((ROWS[a] - ROWS[b]) ** 2).sum()))


def members(code: int) -> list[int]:
    return [other for other in range(12) if PRIOR.labels[other] == PRIOR.labels[code]]


@pytest.mark.parametrize("rows_at_once", [1, 2, 1024])
def test_distances_agree_with_the_plain_loops(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_statistics, "ROWS_AT_ONCE", rows_at_once)
    pairs = [distance(a, b) for a in range(12) for b in members(a) if a < b]
    uniform = [USAGE[z] * np.mean([distance(z, m) for m in members(z)]) for z in range(12)]
    frequency = []
    for z in range(12):
        counts = [int(COUNTS[m]) for m in members(z)]
        weights = counts if sum(counts) else [1] * len(counts)
        moved = [w * distance(z, m) for w, m in zip(weights, members(z), strict=True)]
        frequency.append(USAGE[z] * sum(moved) / sum(weights))
    measured = cluster_distances(ROWS, PRIOR, USAGE, COUNTS)
    assert measured.pairs == pytest.approx(np.mean(pairs))
    assert measured.uniform == pytest.approx(sum(uniform) / 24)
    assert measured.frequency == pytest.approx(sum(frequency) / 24)


def test_no_distance_where_every_code_is_alone() -> None:
    measured = cluster_distances(ROWS, ClusterMap.identity(12), USAGE, COUNTS)
    assert (measured.pairs, measured.uniform, measured.frequency) == (0, 0, 0)


def test_chances_of_clusters_that_were_never_counted_are_even() -> None:
    probabilities = code_probabilities(PRIOR, COUNTS)
    assert np.bincount(PRIOR.labels, weights=probabilities) == pytest.approx(np.ones(6))
    assert probabilities[[5, 6]].tolist() == [0.5, 0.5]
    assert probabilities[[0, 2, 4]] == pytest.approx([3 / 14, 0, 9 / 14])
