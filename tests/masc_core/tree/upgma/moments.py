"""Clusters in the middle of a merger, and their average distances by the plain formula."""

from __future__ import annotations

import numpy as np
from scipy.spatial import distance

from masc_core.arrays import FloatArray, IntArray
from masc_core.tree.upgma.clusters import Clusters
from masc_core.tree.upgma.history import DistinctRows


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
    alive = np.flatnonzero(clusters.alive)
    weights = np.zeros((len(alive), len(clusters.points)))  # of every point in every cluster
    for row, slot in enumerate(alive):
        members = members_of(clusters, int(slot))
        weights[row, members] = clusters.weights[members]
    weights /= weights.sum(axis=1, keepdims=True)
    distances = np.full((len(clusters.alive),) * 2, np.inf)
    pairwise = distance.cdist(clusters.points, clusters.points)
    distances[np.ix_(alive, alive)] = weights @ pairwise @ weights.T
    np.fill_diagonal(distances, np.inf)
    return distances


def clusters_of(points: FloatArray, weights: FloatArray | None = None) -> Clusters:
    """Every point a cluster."""
    count = len(points)
    weights = np.ones(count) if weights is None else weights
    return Clusters.singletons(DistinctRows(points, weights, np.arange(count)))


def singletons(seed: int) -> Clusters:
    """Weighted points of some shape, one a cluster."""
    rng = np.random.default_rng(seed)
    count, dimensions = int(rng.integers(2, 60)), 8 * int(rng.integers(1, 9))
    points = rng.normal(size=(count, dimensions)) * rng.choice([1.0, 1e-6, 1e6])
    if rng.random() < 0.3:
        points = np.round(points)  # ties
    if rng.random() < 0.3:
        points *= rng.pareto(1.0, size=(count, 1))
    return clusters_of(points, rng.integers(1, 4, count).astype(float))


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
