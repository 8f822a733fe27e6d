"""Balanced k-means: K clusters of exactly V / K codes, as IAR rearranges its codebook.

The rows are normalised to unit length. In every round the rows choose a centre in ascending order
of the distance to the centre nearest to them, and each takes the nearest one that still has room; a
centre moves to the mean of its rows, which is not normalised again. Rounds end when no centre moves
(``|new - old| <= 1e-8 + 1e-5 |old|``) or after 100 of them: choosing in turn is greedy, not
optimal, so rounds can also alternate for ever.

Hu et al.: Improving Autoregressive Visual Generation with Cluster-Oriented Token Prediction. 2025.

Legend: V codes, E code dimensions, K clusters.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from masc_core.arrays import FloatArray, IntArray
from masc_core.clustering.distances import first_lowest, squared_distances
from masc_core.prior import ClusterMap

MAX_ROUNDS = 100


def balanced_kmeans(rows: FloatArray, num_clusters: int, seed: int = 0) -> ClusterMap:
    """Clusters of equal size, around centres that start at K rows drawn without replacement.

    A round takes O(V K E) time, the memory is linear in V.

    Parameters
    ----------
    rows : float64 (V, E), of any length, see `checked_rows`
    num_clusters : K, in 1..V
    seed : of the first centres

    Raises
    ------
    ValueError : K is no divisor of V
    """
    if len(rows) % num_clusters:
        raise ValueError(
            f"clusters of equal size need a K that divides the {len(rows)} codes, "
            f"got {num_clusters}"
        )
    first = np.random.default_rng(seed).permutation(len(rows))[:num_clusters]
    return ClusterMap.from_labels(_balanced_labels(rows, first))


def _balanced_labels(rows: FloatArray, first: IntArray) -> IntArray:
    """Cluster of each row, (V,), where cluster k starts at row ``first[k]``."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.maximum(lengths, 1e-12)
    centres = rows[first]
    for _ in range(MAX_ROUNDS):
        labels = _choose(rows, centres)
        members = np.argsort(labels, kind="stable")
        previous = centres
        centres = rows[members].reshape(len(first), -1, rows.shape[1]).mean(axis=1)
        if np.allclose(centres, previous):
            break
    return labels


def _choose(rows: FloatArray, centres: FloatArray) -> IntArray:
    points = np.ascontiguousarray(centres.T)  # (E, K)
    nearest, distances = _nearest(rows, points)
    order = np.argsort(distances, kind="stable")
    return _choose_in_turn(rows, order, nearest, points, len(rows) // len(centres))


@njit(cache=True)
def _nearest(rows: FloatArray, centres: FloatArray) -> tuple[IntArray, FloatArray]:
    """Nearest centre of each row and the squared distance to it, (V,) each."""
    nearest = np.empty(len(rows), np.int64)
    lowest = np.empty(len(rows))
    distances = np.empty(centres.shape[1])
    for i in range(len(rows)):
        squared_distances(rows[i], centres, 0, distances)
        nearest[i] = first_lowest(distances)
        lowest[i] = distances[nearest[i]]
    return nearest, lowest


@njit(cache=True)
def _choose_in_turn(
    rows: FloatArray, order: IntArray, nearest: IntArray, centres: FloatArray, capacity: int
) -> IntArray:
    """Each row's nearest centre with room, (V,). Moves the centres that are full to infinity."""
    labels = np.empty(len(rows), np.int64)
    room = np.full(centres.shape[1], capacity)
    distances = np.empty(centres.shape[1])
    for i in order:
        centre = nearest[i]
        if room[centre] == 0:
            squared_distances(rows[i], centres, 0, distances)
            centre = first_lowest(distances)
        labels[i] = centre
        room[centre] -= 1
        if room[centre] == 0:
            centres[:, centre] = np.inf
    return labels
