"""Clusters in the middle of a merger, and their average distances by the plain formula."""

from __future__ import annotations

import numpy as np

from masc_core.tree.upgma.clusters import Clusters, spatial_order
from masc_core.tree.upgma.types import FloatArray, IntArray


def members_of(clusters: Clusters, slot: int) -> list[int]:
    """Points of a slot, from its runs."""
    members: list[int] = []
    run = int(clusters.heads[slot])
    while run >= 0:
        start, stop, run = clusters.runs[run].tolist()
        members += range(start, stop)
    return members


def average_distances(clusters: Clusters) -> FloatArray:
    """D of every two alive slots, float64 (n, n); infinite elsewhere."""
    count = len(clusters.alive)
    distances = np.full((count, count), np.inf)
    members = {int(i): members_of(clusters, int(i)) for i in np.flatnonzero(clusters.alive)}
    for i, first in members.items():
        for j, second in members.items():
            if i != j:
                gaps = clusters.points[first][:, None] - clusters.points[second]
                weights = np.outer(clusters.weights[first], clusters.weights[second])
                far = np.linalg.norm(gaps, axis=2)
                distances[i, j] = np.average(far, weights=weights)
    return distances


def singletons(seed: int) -> Clusters:
    """Weighted points of some shape, one a cluster."""
    rng = np.random.default_rng(seed)
    count, dimensions = int(rng.integers(2, 60)), 8 * int(rng.integers(1, 9))
    points = rng.normal(size=(count, dimensions)) * rng.choice([1.0, 1e-6, 1e6])
    if rng.random() < 0.3:
        points = np.round(points)  # ties
    if rng.random() < 0.3:
        points *= rng.pareto(1.0, size=(count, 1))
    weights = rng.integers(1, 4, count).astype(float)
    return Clusters.singletons(points, weights, np.arange(count), spatial_order(points))


def some_moment(seed: int) -> Clusters:
    """Weighted points, some of them merged at random, some slots dead."""
    rng = np.random.default_rng([seed, 1])
    clusters = singletons(seed)
    for _ in range(int(rng.integers(0, 4))):
        into, dropped = random_pairs(clusters, rng)
        clusters.merge(into, dropped)
        if rng.random() < 0.3:
            clusters.compact()
    return clusters


def random_pairs(clusters: Clusters, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Slots to merge, lower ones and higher ones; at least two clusters are left alone."""
    alive = rng.permutation(np.flatnonzero(clusters.alive))
    pairs = int(rng.integers(0, max(1, (len(alive) - 2) // 2 + 1)))
    chosen = np.sort(alive[: 2 * pairs].reshape(-1, 2), axis=1)
    return chosen[:, 0], chosen[:, 1]
