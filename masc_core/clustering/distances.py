"""One point against many: the inner loops of the clusterings, in float64.

Differences are squared and added up dimension by dimension, never expanded into products, so equal
points are at distance 0 and the distance is the same from both ends. Multiplications and additions
are not fused and not reordered: every processor gets the same bits.

Legend: E dimensions, n points, m of them asked for.
"""

from __future__ import annotations

from numba import njit

from masc_core.arrays import FloatArray

# Numba compiles these into their callers and keeps the result by the date of the caller's file:
# after a change here, delete __pycache__.


@njit(cache=True)
def squared_distances(
    point: FloatArray, points: FloatArray, start: int, distances: FloatArray
) -> None:
    """Squared distances of ``point`` (E,) to ``points[:, start : start + m]``, of (E, n).

    A point at infinity is infinitely far away. ``distances`` (m,) is overwritten.
    """
    distances[:] = 0.0
    for k in range(len(point)):
        coordinate = point[k]
        others = points[k, start : start + len(distances)]  # a slice, or it is not vectorised
        for i in range(len(distances)):
            difference = others[i] - coordinate
            distances[i] += difference * difference


@njit(cache=True)
def first_lowest(values: FloatArray) -> int:
    """Index of the first of the lowest values."""
    lowest = 0
    for i in range(1, len(values)):
        if values[i] < values[lowest]:
            lowest = i
    return lowest
