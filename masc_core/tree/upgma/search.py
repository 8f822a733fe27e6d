"""Searches for near clusters, each with a lower bound on the distance of all it leaves out.

The mean distance of two clusters is never less than the distance of their centroids (Jensen's
inequality), so a cluster beyond the m nearest centroids is at least as far as the last of these.
Centroids are found by boxes in few dimensions, by matrix products in many, where no box can be
skipped. Where centroids do not help either, products of the members with all points give the mean
distances themselves, but for rounding.

Legend: N points, n slots, E dimensions, R rows that ask, m neighbours wanted, M members of the
rows, b blocks of `BLOCK` slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numba
import numpy as np

from masc_core.arrays import FloatArray, IdArray, IntArray
from masc_core.numba_jit import njit_parallel, njit_serial
from masc_core.tree.upgma.clusters import Clusters
from masc_core.tree.upgma.distances import (
    Members,
    ProductArray,
    Products,
    SquaredDistanceParts,
    tile_squares,
    tiles_of,
)

CHUNK_BYTES = 16 << 20  # of what a search holds at a time
BLOCK = 64
MAX_MEMBERS = 128  # multiplied at a time: so few are most often near each other


class SearchResult(NamedTuple):
    """The clusters that may be near, for some of the rows."""

    rows: IntArray  # (R,), the queries
    ids: IdArray  # (R, m), slots that may be near, in no order
    counts: IntArray  # (R,), valid entries of `ids`
    lower_bound: FloatArray  # (R,), no other cluster is nearer in average distance


class NearestHeap(NamedTuple):
    """The nearest so far of every row, while slots are offered block by block."""

    ids: IdArray  # (R, m)
    distances: FloatArray  # (R, m), once a row is full a heap with the farthest at 0
    counts: IntArray  # (R,), entries taken


class BoxSearch:
    """Skips blocks of slots by their bounding boxes; exact but for rounding.

    Parameters
    ----------
    clusters : slots that are neighbours should be neighbours in space
    """

    def __init__(self, clusters: Clusters) -> None:
        centroids = np.where(clusters.listed[:, None], clusters.centroids, np.inf)
        self._clusters = clusters
        self._tiles = tiles_of(centroids, BLOCK, fill=np.inf)  # (b, E, BLOCK)
        self._low = np.ascontiguousarray(self._tiles.min(axis=2).T)  # (E, b)
        finite = np.where(np.isinf(self._tiles), -np.inf, self._tiles)
        self._high = np.ascontiguousarray(finite.max(axis=2).T)

    def nearest(self, rows: IntArray, num_neighbours: int) -> Iterator[SearchResult]:
        """The listed slots whose centroids are nearest to each row (R,), in parts."""
        for part in _chunks(rows, 12 * num_neighbours):
            heap = empty_heap(len(part), num_neighbours)
            _scan(part, self._clusters.centroids, self._tiles, self._low, self._high, heap)
            yield _result(self._clusters, part, heap, np.sqrt(farthest(heap)))


class ProductSearch:
    """All distances of centroids by matrix products, less what rounding may have added."""

    def __init__(self, clusters: Clusters) -> None:
        self._clusters = clusters
        self._slots = np.flatnonzero(clusters.listed)
        self._position = np.full(len(clusters.alive), -1)
        self._position[self._slots] = np.arange(len(self._slots))
        self._products = Products(clusters.centroids[self._slots], np.float32)

    def nearest(self, rows: IntArray, num_neighbours: int) -> Iterator[SearchResult]:
        """See `BoxSearch.nearest`."""
        for part in _chunks(rows, 4 * len(self._slots) + 12 * num_neighbours):
            own = self._position[part]
            heap = empty_heap(len(part), num_neighbours)
            _select(own, self._products.rows_to_all(own), heap)
            heap.ids[:] = self._slots[heap.ids]
            distances = np.sqrt(np.maximum(farthest(heap), 0.0)) * self._products.scale
            yield _result(self._clusters, part, heap, distances)


class MemberSearch:
    """All average distances by matrix products, less what rounding may have added."""

    def __init__(self, clusters: Clusters) -> None:
        self._clusters = clusters
        self._owners = clusters.owners()
        self._sizes = np.where(clusters.listed, clusters.sizes, 0.0)
        self._products = clusters.products()

    def nearest(self, rows: IntArray, num_neighbours: int) -> Iterator[SearchResult]:
        """See `BoxSearch.nearest`; here average distances decide."""
        clusters = self._clusters
        most = min(MAX_MEMBERS, max(1, CHUNK_BYTES // (4 * len(clusters.points))))
        points, counts = clusters.points_of(rows)
        stops = np.cumsum(counts)
        first = 0
        while first < len(rows):
            done = stops[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(stops, done + most, side="right")))
            part = points[done : stops[last - 1]]
            heap = empty_heap(last - first, num_neighbours)
            _add_up(
                rows[first:last],
                stops[first:last] - done,
                part,
                self._products.rows_to_all(part),
                self._owners,
                clusters.members()._replace(sizes=self._sizes),
                heap,
            )
            distances = farthest(heap) * self._products.scale
            yield _result(clusters, rows[first:last], heap, distances)
            first = last


def _chunks(rows: IntArray, row_bytes: int) -> Iterator[IntArray]:
    """Consecutive parts of ``rows`` that take `CHUNK_BYTES` each, or one row."""
    step = max(1, CHUNK_BYTES // row_bytes)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _result(
    clusters: Clusters, rows: IntArray, heap: NearestHeap, distances: FloatArray
) -> SearchResult:
    """The answer, with what rounding may have added taken off the farthest ``distances`` (R,)."""
    with np.errstate(invalid="ignore"):  # of infinity, where everything was found
        least = distances - clusters.rounding(rows, distances)
    lower_bound = np.where(np.isinf(distances), np.inf, least)
    return SearchResult(rows, heap.ids, heap.counts, lower_bound)


@njit_parallel
def _scan(
    rows: IntArray,
    centroids: FloatArray,
    tiles: FloatArray,
    low: FloatArray,
    high: FloatArray,
    heap: NearestHeap,
) -> None:
    dimensions, num_blocks = low.shape
    for r in numba.prange(len(rows)):
        i = rows[r]
        gaps = np.zeros(num_blocks)  # squared distance to each box
        for e in range(dimensions):
            x = centroids[i, e]
            for b in range(num_blocks):
                gap = max(low[e, b] - x, x - high[e, b], 0.0)
                gaps[b] += gap * gap
        _visit(r, i, i // BLOCK, centroids, tiles, heap)
        gaps[i // BLOCK] = np.inf
        # The nearer boxes first: they tighten the bound for the others.
        for part in (0.25, 1.0):
            for b in range(num_blocks):
                if gaps[b] < part * limit(heap, r):
                    _visit(r, i, b, centroids, tiles, heap)
                    gaps[b] = np.inf


@njit_serial
def _visit(
    r: int, i: int, b: int, centroids: FloatArray, tiles: FloatArray, heap: NearestHeap
) -> None:
    """Offer the slots of block ``b`` to row ``r``, slot ``i``."""
    squares = np.empty(BLOCK)
    tile_squares(tiles[b], centroids[i], squares)
    offer(heap, r, i, squares, BLOCK, b * BLOCK)


@njit_parallel
def _select(rows: IntArray, squares: SquaredDistanceParts, heap: NearestHeap) -> None:
    norms = squares.norms
    for r in numba.prange(len(rows)):
        distances = np.empty(BLOCK, norms.dtype)
        for begin in range(0, len(norms), BLOCK):
            others = norms[begin : begin + BLOCK]
            products = squares.products[r, begin : begin + BLOCK]
            for c in range(len(others)):
                both = squares.own[r] + others[c]
                distances[c] = both - (products[c] + products[c]) - squares.margin * both
            offer(heap, r, rows[r], distances, len(others), begin)


@njit_parallel
def _add_up(
    rows: IntArray,
    stops: IntArray,
    part: IntArray,
    squares: SquaredDistanceParts,
    owners: IntArray,
    members: Members,
    heap: NearestHeap,
) -> None:
    """Sum the distances of the points ``part`` (M,), row by row, and offer the means."""
    norms, weights = squares.norms, members.weights
    for r in numba.prange(len(rows)):
        sums = np.zeros(len(members.sizes))
        distances = np.empty(BLOCK, norms.dtype)
        for m in range(stops[r - 1] if r else 0, stops[r]):
            for begin in range(0, len(norms), BLOCK):
                others = norms[begin : begin + BLOCK]
                products = squares.products[m, begin : begin + BLOCK]
                for c in range(len(others)):
                    both = squares.own[m] + others[c]
                    square = both - (products[c] + products[c]) - squares.margin * both
                    distances[c] = np.sqrt(square) if square > 0.0 else 0.0
                for c in range(len(others)):
                    sums[owners[begin + c]] += weights[part[m]] * weights[begin + c] * distances[c]
        _offer_means(r, rows[r], sums, members.sizes, heap)


@njit_serial
def _offer_means(r: int, i: int, sums: FloatArray, sizes: FloatArray, heap: NearestHeap) -> None:
    """Offer sums divided by sizes to row ``r``, slot ``i``; what is not to be found has size 0."""
    means = np.empty(BLOCK)
    for begin in range(0, len(sizes), BLOCK):
        width = min(BLOCK, len(sizes) - begin)
        for c in range(width):
            size = sizes[begin + c]
            means[c] = sums[begin + c] / (size * sizes[i]) if size > 0.0 else np.inf
        offer(heap, r, i, means, width, begin)


def empty_heap(num_rows: int, num_neighbours: int) -> NearestHeap:
    """Nothing found yet."""
    return NearestHeap(
        np.zeros((num_rows, num_neighbours), np.int32),
        np.full((num_rows, num_neighbours), np.inf),
        np.zeros(num_rows, np.int64),
    )


def farthest(heap: NearestHeap) -> FloatArray:
    """`limit` of every row, (R,)."""
    full = heap.counts == heap.distances.shape[1]
    return np.where(full, heap.distances[:, 0], np.inf)


@njit_serial
def limit(heap: NearestHeap, r: int) -> float:
    """What is no nearer than this to row ``r`` is not kept; infinite until the row is full."""
    full = heap.counts[r] == heap.distances.shape[1]
    return heap.distances[r, 0] if full else np.inf


@njit_serial
def offer(
    heap: NearestHeap, r: int, own: int, distances: ProductArray, width: int, begin: int
) -> None:
    """Offer ``width`` slots from ``begin`` on, at ``distances``, to row ``r``, slot ``own``."""
    worst = limit(heap, r)
    nearer = 0
    for c in range(width):
        nearer += distances[c] < worst
    if nearer == 0:  # as in most blocks, and counted without a branch
        return
    for c in range(width):
        if distances[c] < worst and begin + c != own:
            _push(heap, r, begin + c, distances[c])
            worst = limit(heap, r)


@njit_serial
def _push(heap: NearestHeap, r: int, j: int, distance: float) -> None:
    ids, distances = heap.ids[r], heap.distances[r]
    count, width = heap.counts[r], len(ids)
    if count == width:
        ids[0], distances[0] = j, distance
        _sift_down(0, ids, distances)
        return
    ids[count], distances[count] = j, distance
    heap.counts[r] = count + 1
    if count + 1 == width:
        for start in range(width // 2 - 1, -1, -1):
            _sift_down(start, ids, distances)


@njit_serial
def _sift_down(at: int, ids: IdArray, distances: FloatArray) -> None:
    width = len(ids)
    while 2 * at + 1 < width:
        child = 2 * at + 1
        if child + 1 < width and distances[child + 1] > distances[child]:
            child += 1
        if distances[child] <= distances[at]:
            return
        ids[at], ids[child] = ids[child], ids[at]
        distances[at], distances[child] = distances[child], distances[at]
        at = child
