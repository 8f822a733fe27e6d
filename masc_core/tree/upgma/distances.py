"""Distances between points: of two clusters' members, of a point to a tile, by matrix products.

``S(A, B) = sum of w_p w_q ||x_p - x_q|| over p in A, q in B``, so that ``D(A, B) = S / (|A| |B|)``.

Legend: N points, E dimensions, n slots or vectors, R rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from masc_core.arrays import FloatArray, IntArray
from masc_core.numba_jit import njit_reassociated, njit_serial

ProductArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]
ClusterIndex = int | np.integer[Any]  # the loops' counters are unsigned, ids are int32

MANY_DIMENSIONS = 48  # from here on matrix products win (benchmarks/tree.py)
LANES = 8  # dimensions whose squares are added in one pass; others are filled up with zeros
CANCELLATION_SHARE = 1e-5  # of the squared norms: squared distances below it have lost their digits
RECENTRE_RATIO = 16.0  # times their own spread: rows so far from the centre get one of their own
STEP = 4096  # vectors that are rounded at a time
TINY = float(np.finfo(np.float64).tiny)


class Members(NamedTuple):
    """Who belongs to which cluster, for compiled loops.

    Attributes
    ----------
    points, weights : float64 (N, E) and (N,)
    runs : int64 (N, 3), stretches of ``points``: start, stop, next run of the same cluster or -1
    heads : int64 (n,), first run of each cluster
    sizes : float64 (n,), total weight
    nodes : int64 (n,), node of the tree
    """

    points: FloatArray
    weights: FloatArray
    runs: IntArray
    heads: IntArray
    sizes: FloatArray
    nodes: IntArray


@njit_reassociated
def distance(points: FloatArray, p: ClusterIndex, q: ClusterIndex) -> float:
    """Euclidean distance of two rows of ``points`` (N, E)."""
    first, second = points[p], points[q]
    total = 0.0
    for e in range(len(first)):
        difference = first[e] - second[e]
        total += difference * difference
    return np.sqrt(total)


@njit_serial
def mean_distance(members: Members, i: ClusterIndex, j: ClusterIndex, limit: float) -> float:
    """D of two slots, or infinity as soon as it is known to exceed ``limit``."""
    scale = members.sizes[i] * members.sizes[j]
    total: float = pair_sum(members, i, j, limit * scale) / scale
    return total if total <= limit else np.inf


@njit_serial
def pair_sum(members: Members, i: ClusterIndex, j: ClusterIndex, limit: float) -> float:
    """S of two slots, or a number above ``limit`` as soon as S is known to exceed it."""
    points, weights, runs = members.points, members.weights, members.runs
    total: float = 0.0
    a = members.heads[i]
    while a >= 0:
        for p in range(runs[a, 0], runs[a, 1]):
            row = 0.0
            b = members.heads[j]
            while b >= 0:
                for q in range(runs[b, 0], runs[b, 1]):
                    row += weights[q] * distance(points, p, q)
                b = runs[b, 2]
            total += weights[p] * row
            if total > limit:
                return total
        a = runs[a, 2]
    return total


def tiles_of(points: FloatArray, width: int, fill: float) -> FloatArray:
    """Points (N, E) as tiles (ceil(N / width), E, width), the last one filled up with ``fill``.

    In a tile the points stand side by side, so that a vector instruction holds one dimension of
    several of them.
    """
    num_points, dimensions = points.shape
    num_tiles = -(-num_points // width)
    padded = np.full((num_tiles * width, dimensions), fill)
    padded[:num_points] = points
    return np.ascontiguousarray(padded.reshape(num_tiles, width, dimensions).transpose(0, 2, 1))


@njit_serial
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


@njit_serial
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


class SquaredDistanceParts(NamedTuple):
    """Parts of the squared distances of some rows to all vectors, in units of `Products.scale`.

    ``own[r] + norms[j] - 2 products[r, j]`` is off by at most ``margin * (own[r] + norms[j])``.
    """

    products: ProductArray  # (R, n), or the other way round
    own: ProductArray  # (R,)
    norms: ProductArray  # (n,)
    margin: np.floating[Any]


class Products:
    """Squared distances of vectors (n, E) by matrix products, and how far they may be off.

    ``|a - b|^2 = |a|^2 + |b|^2 - 2 a b``, with vectors that are centred, or centred anew around
    the rows that ask where these lie close together: an error is relative to the distance from the
    centre, so near vectors are told apart even where all of them are far from the others.

    Attributes
    ----------
    scale : float, what a distance of 1 in `SquaredDistanceParts` stands for
    """

    def __init__(self, vectors: FloatArray, dtype: type[np.float32 | np.float64]) -> None:
        self._vectors = vectors
        self.scale = max(float(np.ptp(vectors)), TINY)  # float32 cannot square all of float64
        self._dtype = dtype
        centred = self._seen_from(vectors.mean(axis=0))
        self._views: tuple[tuple[ProductArray, ProductArray], ...] = ((centred, _norms(centred)),)
        # Rounding of the entries, of E products and of their sum.
        self._margin = dtype(4 * (vectors.shape[1] + 8) * np.finfo(dtype).eps)

    def rows_to_all(self, rows: IntArray) -> SquaredDistanceParts:
        """Products of the vectors ``rows`` (R,) with all, (R, n)."""
        vectors, norms = self._around(rows)
        return SquaredDistanceParts(vectors[rows] @ vectors.T, norms[rows], norms, self._margin)

    def all_to_rows(self, rows: IntArray, begin: int) -> SquaredDistanceParts:
        """Products of the vectors from ``begin`` on with ``rows`` (R,), (n - begin, R)."""
        vectors, norms = self._around(rows)
        products = vectors[begin:] @ vectors[rows].T
        return SquaredDistanceParts(products, norms[rows], norms[begin:], self._margin)

    def _around(self, rows: IntArray) -> tuple[ProductArray, ProductArray]:
        """Vectors as seen from ``rows`` if these are together and far off, and squared norms."""
        for view in self._views:
            centre = view[0][rows].mean(axis=0, dtype=np.float64)
            far_off = np.vdot(centre, centre)
            if view[1][rows].mean(dtype=np.float64) - far_off >= far_off / RECENTRE_RATIO**2:
                return view
        vectors = self._seen_from(self._vectors[rows].mean(axis=0))
        # The next rows may well be near these.
        self._views = (self._views[0], (vectors, _norms(vectors)))
        return self._views[1]

    def _seen_from(self, centre: FloatArray) -> ProductArray:
        seen = cast("ProductArray", np.empty(self._vectors.shape, self._dtype))
        for start in range(0, len(seen), STEP):  # in parts: the difference is float64
            part = (self._vectors[start : start + STEP] - centre) / self.scale
            seen[start : start + STEP] = part
        return seen


def _norms(vectors: ProductArray) -> ProductArray:
    return np.einsum("ij,ij->i", vectors, vectors)
