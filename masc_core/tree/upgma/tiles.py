"""Distances of one point to a tile of points, dimension by dimension, in vector registers.

A tile is ``(E, T)``: T points side by side, so that a vector instruction holds one dimension of
several points. Dimensions are padded with zeros to a multiple of `LANES`, so that no loop over them
has a rest.
"""

from __future__ import annotations

import numpy as np

from masc_core.kernel import inline
from masc_core.tree.upgma.types import FloatArray

LANES = 8  # dimensions whose squares are added in one pass


def tiles_of(points: FloatArray, width: int, fill: float) -> FloatArray:
    """Points (N, E) as tiles (ceil(N / width), E, width), the last one filled up with ``fill``."""
    num_points, dimensions = points.shape
    num_tiles = -(-num_points // width)
    padded = np.full((num_tiles * width, dimensions), fill)
    padded[:num_points] = points
    return np.ascontiguousarray(padded.reshape(num_tiles, width, dimensions).transpose(0, 2, 1))


@inline
def tile_squares(tile: FloatArray, point: FloatArray, out: FloatArray) -> None:
    """Squared distances of ``point`` (E,) to the points of ``tile`` (E, T), to ``out`` (T,)."""
    out[:] = 0.0
    for e in range(0, len(point), LANES):
        x0, x1, x2, x3 = point[e], point[e + 1], point[e + 2], point[e + 3]
        x4, x5, x6, x7 = point[e + 4], point[e + 5], point[e + 6], point[e + 7]
        c0, c1, c2, c3 = tile[e], tile[e + 1], tile[e + 2], tile[e + 3]
        c4, c5, c6, c7 = tile[e + 4], tile[e + 5], tile[e + 6], tile[e + 7]
        for q in range(tile.shape[1]):
            d0, d1, d2, d3 = c0[q] - x0, c1[q] - x1, c2[q] - x2, c3[q] - x3
            d4, d5, d6, d7 = c4[q] - x4, c5[q] - x5, c6[q] - x6, c7[q] - x7
            out[q] += ((d0 * d0 + d4 * d4) + (d2 * d2 + d6 * d6)) + (
                (d1 * d1 + d5 * d5) + (d3 * d3 + d7 * d7)
            )


@inline
def add_distances(tile: FloatArray, point: FloatArray, weight: float, out: FloatArray) -> None:
    """Add ``weight`` times the distances of ``point`` (E,) to ``tile`` (E, T) to ``out`` (T,)."""
    if len(point) > LANES:
        squares = np.empty(tile.shape[1])
        tile_squares(tile, point, squares)
        for q in range(tile.shape[1]):
            out[q] += weight * np.sqrt(squares[q])
        return
    # The case of image tokenizers, in one pass: twice as fast.
    x0, x1, x2, x3 = point[0], point[1], point[2], point[3]
    x4, x5, x6, x7 = point[4], point[5], point[6], point[7]
    c0, c1, c2, c3 = tile[0], tile[1], tile[2], tile[3]
    c4, c5, c6, c7 = tile[4], tile[5], tile[6], tile[7]
    for q in range(tile.shape[1]):
        d0, d1, d2, d3 = c0[q] - x0, c1[q] - x1, c2[q] - x2, c3[q] - x3
        d4, d5, d6, d7 = c4[q] - x4, c5[q] - x5, c6[q] - x6, c7[q] - x7
        out[q] += weight * np.sqrt(
            ((d0 * d0 + d4 * d4) + (d2 * d2 + d6 * d6))
            + ((d1 * d1 + d5 * d5) + (d3 * d3 + d7 * d7))
        )
