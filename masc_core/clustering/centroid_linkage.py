"""Bottom-up clustering with centroid distance (UPGMC): the paper's "MASC with centroid".

``D(A, B)`` is the Euclidean distance between the mean row of A and the mean row of B; the two
clusters with the smallest D merge, V-1 times. Of pairs equally near, the one whose lower node is
lowest merges, then the one whose higher node is.

Centroid distance is not reducible: a merged cluster can be nearer to a third one than its parts
were, so heights can fall and a threshold on them cuts no tree. Merge order is the only order there
is: `masc_core.semantic_tree.cut_merges` keeps the first V-K merges.

fastcluster's has the same heights to 6e-16, but no rule for ties, and equal rows do not stay at
distance 0.

Legend: V codes, E code dimensions. Nodes are numbered as in SciPy: 0..V-1 are the
codes, V+i is the cluster that merge i makes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from masc_core.arrays import FloatArray, IntArray
from masc_core.clustering.distances import first_lowest, squared_distances


class _Clusters(NamedTuple):
    """One slot a cluster, ascending by node, so the lowest slot of equals has the lowest node.

    A slot keeps its nearest neighbour among the *later* slots, so every pair is kept once. Slots of
    merged clusters stay behind, at infinity.
    """

    points: FloatArray  # (E, slots), centroids
    nodes: IntArray
    sizes: IntArray  # 0: merged away
    nearest: IntArray  # slot; -1: not known
    bounds: FloatArray  # squared distance to it; a lower bound where it is not known


def centroid_linkage(rows: FloatArray) -> FloatArray:
    """Every merge of a codebook's rows in merge order, exact in float64.

    The time is that of a few scans of all centroids for every merge, O(V^2 E) unless the data are
    made against it; the memory is linear in V. One thread: the result depends on the rows alone.

    Parameters
    ----------
    rows : float64 (V, E), see `checked_rows`

    Returns
    -------
    float64 (V-1, 4), SciPy's convention: the two nodes merged, the lower first, the height (their
    distance, in the codebook's unit), the number of codes in the result. Heights can fall
    """
    # A power of two scales exactly, and keeps squares from overflow and underflow.
    exponent = np.frexp(np.abs(rows).max())[1]
    num_codes = len(rows)
    merges = np.empty((num_codes - 1, 4))
    round_size = num_codes // 16 + 1  # merges between two removals of the slots left behind
    clusters = _singletons(np.ldexp(rows, -exponent), num_codes + round_size)
    num_slots = num_codes
    for start in range(0, num_codes - 1, round_size):
        part = merges[start : start + round_size]
        _merge_nearest(clusters, num_slots, num_codes + start, part)
        num_slots = _compact(clusters, num_slots + len(part))
    merges[:, 2] = np.ldexp(merges[:, 2], exponent)
    return merges


def _singletons(rows: FloatArray, capacity: int) -> _Clusters:
    num_codes, dimensions = rows.shape
    clusters = _Clusters(
        points=np.empty((dimensions, capacity)),
        nodes=np.arange(capacity),
        sizes=np.ones(capacity, dtype=np.int64),
        nearest=np.full(capacity, -1),
        bounds=np.zeros(capacity),
    )
    clusters.points[:, :num_codes] = rows.T
    clusters.bounds[num_codes - 1] = np.inf  # nothing comes after the last one
    return clusters


def _compact(clusters: _Clusters, num_slots: int) -> int:
    """Close up the slots of merged clusters, keeping the order; returns how many are left."""
    alive = np.flatnonzero(clusters.sizes[:num_slots])
    moved_to = np.full(num_slots + 1, -1)  # the last entry is index -1, an unknown neighbour
    moved_to[alive] = np.arange(len(alive))
    clusters.nearest[alive] = moved_to[clusters.nearest[alive]]
    for values in clusters:
        values[..., : len(alive)] = values[..., alive]
    return len(alive)


@njit(cache=True)
def _merge_nearest(clusters: _Clusters, num_slots: int, next_node: int, merges: FloatArray) -> None:
    """Make ``len(merges)`` merges; merge i puts its cluster into slot ``num_slots + i``."""
    distances = np.empty(len(clusters.bounds))
    for i in range(len(merges)):
        merged = num_slots + i
        a, b = _nearest_pair(clusters, merged, distances)
        merges[i, 0] = clusters.nodes[a]
        merges[i, 1] = clusters.nodes[b]
        merges[i, 2] = np.sqrt(clusters.bounds[a])
        merges[i, 3] = clusters.sizes[a] + clusters.sizes[b]
        clusters.nodes[merged] = next_node + i
        _merge(clusters, a, b, merged)
        _update_neighbours(clusters, a, b, merged, distances)


@njit(cache=True)
def _nearest_pair(clusters: _Clusters, num_slots: int, distances: FloatArray) -> tuple[int, int]:
    """The pair to merge. A neighbour is searched for only where the bound leaves a doubt."""
    points, nearest, bounds = clusters.points, clusters.nearest, clusters.bounds[:num_slots]
    a = first_lowest(bounds)
    while nearest[a] < 0:
        later = distances[a + 1 : num_slots]
        squared_distances(points[:, a], points, a + 1, later)
        nearest[a] = a + 1 + first_lowest(later)
        bounds[a] = distances[nearest[a]]
        a = first_lowest(bounds)
    return a, nearest[a]


@njit(cache=True)
def _merge(clusters: _Clusters, a: int, b: int, merged: int) -> None:
    points, sizes = clusters.points, clusters.sizes
    sizes[merged] = sizes[a] + sizes[b]
    weight = sizes[b] / sizes[merged]
    for k in range(len(points)):
        # In this form the mean of equal numbers is that number, so equal rows stay at distance 0.
        points[k, merged] = points[k, a] + weight * (points[k, b] - points[k, a])
    for slot in (a, b):
        points[:, slot] = np.inf
        sizes[slot] = 0
        clusters.bounds[slot] = np.inf


@njit(cache=True)
def _update_neighbours(
    clusters: _Clusters, a: int, b: int, merged: int, distances: FloatArray
) -> None:
    """Tell every cluster that ``merged`` is there and that ``a`` and ``b`` are not."""
    points, nearest, bounds = clusters.points, clusters.nearest, clusters.bounds
    squared_distances(points[:, merged], points, 0, distances[:merged])
    for slot in range(merged):
        if distances[slot] < bounds[slot]:
            bounds[slot] = distances[slot]
            nearest[slot] = merged
        elif nearest[slot] == a or nearest[slot] == b:
            nearest[slot] = -1  # whatever is left is no nearer
    bounds[merged] = np.inf
    nearest[merged] = -1
