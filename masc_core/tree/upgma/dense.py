"""The last clusters: their exact distances as a small matrix, and a chain of nearest neighbours.

One pass over all pairs of points gives the sums S(A, B) of the clusters that are left; the
nearest-neighbour chain (Benzecri, 1982; Murtagh, 1983) then merges them on that matrix, which is
exact because average linkage is reducible.

Legend: N points in the order of their clusters, E dimensions (padded), m clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np

from masc_core.arrays import FloatArray, IntArray
from masc_core.numba_jit import njit_parallel, njit_serial
from masc_core.progress import ProgressCallback
from masc_core.tree.upgma.distances import (
    CANCELLATION_SHARE,
    MANY_DIMENSIONS,
    Members,
    Products,
    SquaredDistanceParts,
    add_distances,
    distance,
    tiles_of,
)

CHUNK = 128  # points whose distances to all others are taken at a time
GROUPS = 64  # parts into which the clusters are divided among threads


class Grouping(NamedTuple):
    """Which points the clusters own, and how the clusters are divided among threads."""

    starts: IntArray  # (m+1,), cluster `c` owns the points `starts[c]:starts[c + 1]`
    owners: IntArray  # (N,), cluster of each point
    groups: IntArray  # (GROUPS + 1,), group `g` is the clusters `groups[g]:groups[g + 1]`


def distance_matrix(members: Members, report: ProgressCallback) -> FloatArray:
    """Average distances of clusters whose members are next to each other, in the order of slots.

    Parameters
    ----------
    report : called with points done, points in all, and "distances"

    Returns
    -------
    float64 (m, m), symmetric, infinite on the diagonal
    """
    num_points, num_clusters = len(members.points), len(members.sizes)
    starts = np.append(members.runs[:, 0], num_points)
    owners = np.repeat(np.arange(num_clusters), np.diff(starts))
    matrix = np.zeros((num_clusters, num_clusters))
    add = _adder(members)
    for first in range(0, num_points, CHUNK):
        # Earlier clusters have these points already. Groups hold about as many points each.
        low = int(owners[first])
        at = np.linspace(starts[low], num_points, GROUPS + 1).astype(np.int64)
        groups = np.maximum(np.searchsorted(starts, at), low)
        add(first, Grouping(starts, owners, groups), matrix)
        report(min(first + CHUNK, num_points), num_points, "distances")
    _normalise(matrix, members.sizes)
    return matrix


def _adder(members: Members) -> Callable[[int, Grouping, FloatArray], None]:
    """What adds the distances of the `CHUNK` points from ``first`` on to the matrix."""
    if members.points.shape[1] < MANY_DIMENSIONS:
        tiles = tiles_of(members.points, CHUNK, fill=0.0)
        return lambda first, grouping, matrix: _add_direct(
            first, tiles[first // CHUNK], grouping, members, matrix
        )
    products = Products(members.points, np.float64)

    def add(first: int, grouping: Grouping, matrix: FloatArray) -> None:
        # Always as many: BLAS may round a narrower product by the number of its threads.
        rows = np.minimum(np.arange(first, first + CHUNK), len(members.points) - 1)
        squares = products.all_to_rows(rows, int(grouping.starts[grouping.groups[0]]))
        _add_products(first, squares, products.scale, grouping, members, matrix)

    return add


@njit_parallel
def _add_direct(
    first: int, tile: FloatArray, grouping: Grouping, members: Members, matrix: FloatArray
) -> None:
    starts, groups = grouping.starts, grouping.groups
    for g in numba.prange(len(groups) - 1):
        sums = np.empty(CHUNK)
        for c in range(groups[g], groups[g + 1]):
            sums[:] = 0.0
            for q in range(starts[c], starts[c + 1]):
                add_distances(tile, members.points[q], members.weights[q], sums)
            _add_rows(first, sums, c, grouping, members, matrix)


@njit_parallel
def _add_products(
    first: int,
    squares: SquaredDistanceParts,
    scale: float,
    grouping: Grouping,
    members: Members,
    matrix: FloatArray,
) -> None:
    starts, groups, own = grouping.starts, grouping.groups, squares.own
    begin = starts[groups[0]]
    count = min(CHUNK, len(members.points) - first)
    for g in numba.prange(len(groups) - 1):
        sums, squared = np.empty(CHUNK), np.empty(CHUNK)
        for c in range(groups[g], groups[g + 1]):
            sums[:] = 0.0
            for q in range(starts[c], starts[c + 1]):
                norm, product = squares.norms[q - begin], squares.products[q - begin]
                for r in range(count):
                    squared[r] = own[r] + norm - (product[r] + product[r])
                for r in range(count):
                    if squared[r] < CANCELLATION_SHARE * (own[r] + norm):
                        squared[r] = (distance(members.points, first + r, q) / scale) ** 2
                for r in range(count):
                    sums[r] += members.weights[q] * scale * np.sqrt(squared[r])
            _add_rows(first, sums, c, grouping, members, matrix)


@njit_serial
def _add_rows(
    first: int, sums: FloatArray, c: int, grouping: Grouping, members: Members, matrix: FloatArray
) -> None:
    """Add the sums of the points from ``first`` on to the rows of their clusters, in column c."""
    last = min(first + CHUNK, len(members.points))
    p = first
    while p < last:
        total, a = 0.0, grouping.owners[p]
        while p < last and grouping.owners[p] == a:
            total += members.weights[p] * sums[p - first]
            p += 1
        matrix[a, c] += total


@njit_parallel
def _normalise(matrix: FloatArray, sizes: FloatArray) -> None:
    """Sums above the diagonal to means on both sides of it."""
    count = len(matrix)
    for a in numba.prange(count):
        for b in range(a + 1, count):
            matrix[a, b] /= sizes[a] * sizes[b]
        matrix[a, a] = np.inf
    for b in numba.prange(count):
        for a in range(b):
            matrix[b, a] = matrix[a, b]


@njit_serial
def chain(matrix: FloatArray, sizes: FloatArray) -> tuple[IntArray, IntArray, FloatArray]:
    """Merge everything, following nearest neighbours until two are each other's.

    Parameters
    ----------
    matrix : float64 (m, m), used up
    sizes : float64 (m,), used up

    Returns
    -------
    int64 (m-1,) twice, the slots merged (the lower one survives), and float64 (m-1,), the heights;
    a cluster is merged after it was made, but heights are in no order
    """
    count = len(sizes)
    into = np.empty(count - 1, np.int64)
    dropped = np.empty(count - 1, np.int64)
    heights = np.empty(count - 1)
    alive = np.arange(count)  # the slots alive, in ascending order
    num_alive = count
    path = np.empty(count, np.int64)
    length = 0
    for merge in range(count - 1):
        if length == 0:
            path[0], length = alive[0], 1
        while True:
            a = path[length - 1]
            # The one before wins ties, or the chain could go in circles.
            best = path[length - 2] if length > 1 else np.int64(-1)
            least = matrix[a, best] if length > 1 else np.inf
            row = matrix[a]
            for k in range(num_alive):
                b = alive[k]
                if row[b] < least or (best < 0 and b != a):
                    least, best = row[b], b
            if length > 1 and best == path[length - 2]:
                break
            path[length] = best
            length += 1
        length -= 2
        i, j = min(a, best), max(a, best)
        into[merge], dropped[merge], heights[merge] = i, j, least
        total = sizes[i] + sizes[j]
        for k in range(num_alive):
            b = alive[k]
            mean = (sizes[i] * matrix[i, b] + sizes[j] * matrix[j, b]) / total
            matrix[i, b] = mean
            matrix[b, i] = mean
        matrix[i, i] = np.inf
        sizes[i] = total
        at = np.searchsorted(alive[:num_alive], j)
        for k in range(at, num_alive - 1):
            alive[k] = alive[k + 1]
        num_alive -= 1
    return into, dropped, heights
