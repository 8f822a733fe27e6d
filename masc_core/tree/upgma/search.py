"""Nearest centroids in few dimensions: a scan that skips blocks by their bounding boxes.

The mean distance of two clusters is never less than the distance of their centroids (Jensen's
inequality), so a cluster beyond the m nearest centroids is at least as far as the last of these.

Legend: n slots, E dimensions, R rows that ask, b blocks of `BLOCK` consecutive slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numba
import numpy as np

from masc_core.kernel import inline, kernel
from masc_core.tree.upgma.clusters import Clusters
from masc_core.tree.upgma.distances import Members, Products, Squares, tile_squares, tiles_of
from masc_core.tree.upgma.types import FloatArray, IdArray, IntArray, ProductArray

CHUNK_BYTES = 16 << 20  # of what a search holds at a time


@dataclass(frozen=True, slots=True)
class Found:
    """Part of an answer.

    Attributes
    ----------
    rows : int64 (R,), the slots that asked
    ids : int32 (R, m), slots that may be near, in no order; the first ``counts`` of each row
    counts : int64 (R,)
    outside : float64 (R,), no other cluster is nearer in average distance
    """

    rows: IntArray
    ids: IdArray
    counts: IntArray
    outside: FloatArray


class Search(Protocol):
    """Clusters of one moment, ready to be asked."""

    def nearest(self, rows: IntArray, num_wanted: int) -> Iterator[Found]:
        """The ``num_wanted`` alive slots that may be nearest to each row (R,), in parts."""
        ...


def found(clusters: Clusters, rows: IntArray, nearest: Nearest, outside: FloatArray) -> Found:
    """The answer for ``rows``, with what rounding may have added taken off ``outside``."""
    with np.errstate(invalid="ignore"):  # of infinity, where everything was found
        least = outside - clusters.rounding(rows, outside)
    return Found(rows, nearest.ids, nearest.counts, np.where(np.isinf(outside), np.inf, least))


def parts(rows: IntArray, row_bytes: int) -> Iterator[IntArray]:
    """Consecutive parts of ``rows`` that take `CHUNK_BYTES` each, or one row."""
    step = max(1, CHUNK_BYTES // row_bytes)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


class Nearest(NamedTuple):
    """The nearest so far of every row.

    Attributes
    ----------
    ids : int32 (R, m)
    distances : float64 (R, m), once all places of a row are taken a heap, the farthest at place 0
    counts : int64 (R,), places taken
    """

    ids: IdArray
    distances: FloatArray
    counts: IntArray


def room_for(num_rows: int, num_wanted: int) -> Nearest:
    """Nothing found yet."""
    return Nearest(
        np.zeros((num_rows, num_wanted), np.int32),
        np.full((num_rows, num_wanted), np.inf),
        np.zeros(num_rows, np.int64),
    )


def farthest(nearest: Nearest) -> FloatArray:
    """What is no nearer than this was not kept, (R,); infinite where places are left."""
    full = nearest.counts == nearest.distances.shape[1]
    return np.where(full, nearest.distances[:, 0], np.inf)


@inline
def limit(nearest: Nearest, r: int) -> float:
    """What is no nearer than this to row ``r`` is not kept."""
    full = nearest.counts[r] == nearest.distances.shape[1]
    return nearest.distances[r, 0] if full else np.inf


@inline
def offer(nearest: Nearest, r: int, own: int, far: ProductArray, width: int, begin: int) -> None:
    """Offer the slots ``begin + c`` at ``far[c]``, c < ``width``, to row ``r``, slot ``own``."""
    worst = limit(nearest, r)
    nearer = 0
    for c in range(width):
        nearer += far[c] < worst
    if nearer == 0:  # as in most blocks, and counted without a branch
        return
    for c in range(width):
        if far[c] < worst and begin + c != own:
            _keep(nearest, r, begin + c, far[c])
            worst = limit(nearest, r)


@inline
def _keep(nearest: Nearest, r: int, j: int, far: float) -> None:
    ids, distances = nearest.ids[r], nearest.distances[r]
    count, width = nearest.counts[r], len(ids)
    if count == width:
        ids[0], distances[0] = j, far
        _sift(0, ids, distances)
        return
    ids[count], distances[count] = j, far
    nearest.counts[r] = count + 1
    if count + 1 == width:
        for start in range(width // 2 - 1, -1, -1):
            _sift(start, ids, distances)


@inline
def _sift(at: int, ids: IdArray, distances: FloatArray) -> None:
    """Let an entry sink to its place in the heap."""
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


BLOCK = 64


class BoxSearch:
    """Lower bounds from centroids, exact but for rounding.

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

    def nearest(self, rows: IntArray, num_wanted: int) -> Iterator[Found]:
        """See `Search`."""
        for part in parts(rows, 12 * num_wanted):
            nearest = room_for(len(part), num_wanted)
            _scan(part, self._clusters.centroids, self._tiles, self._low, self._high, nearest)
            yield found(self._clusters, part, nearest, np.sqrt(farthest(nearest)))


@kernel
def _scan(
    rows: IntArray,
    centroids: FloatArray,
    tiles: FloatArray,
    low: FloatArray,
    high: FloatArray,
    nearest: Nearest,
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
        _visit(r, i, i // BLOCK, centroids, tiles, nearest)
        gaps[i // BLOCK] = np.inf
        # The nearer boxes first: they tighten the bound for the others.
        for part in (0.25, 1.0):
            for b in range(num_blocks):
                if gaps[b] < part * limit(nearest, r):
                    _visit(r, i, b, centroids, tiles, nearest)
                    gaps[b] = np.inf


@inline
def _visit(
    r: int, i: int, b: int, centroids: FloatArray, tiles: FloatArray, nearest: Nearest
) -> None:
    """Offer the slots of block ``b`` to row ``r``, slot ``i``."""
    far = np.empty(BLOCK)
    tile_squares(tiles[b], centroids[i], far)
    offer(nearest, r, i, far, BLOCK, b * BLOCK)


BLOCK = 64


class ProductSearch:
    """Lower bounds from centroids, less what rounding may have added."""

    def __init__(self, clusters: Clusters) -> None:
        self._clusters = clusters
        self._slots = np.flatnonzero(clusters.listed)
        self._position = np.full(len(clusters.alive), -1)
        self._position[self._slots] = np.arange(len(self._slots))
        self._products = Products(clusters.centroids[self._slots], np.float32)

    def nearest(self, rows: IntArray, num_wanted: int) -> Iterator[Found]:
        """See `Search`."""
        for part in parts(rows, 4 * len(self._slots) + 12 * num_wanted):
            own = self._position[part]
            squares = self._products.of(own)
            nearest = room_for(len(part), num_wanted)
            _select(own, squares, nearest)
            nearest.ids[:] = self._slots[nearest.ids]
            outside = np.sqrt(np.maximum(farthest(nearest), 0.0)) * self._products.scale
            yield found(self._clusters, part, nearest, outside)


@kernel
def _select(rows: IntArray, squares: Squares, nearest: Nearest) -> None:
    norms = squares.norms
    for r in numba.prange(len(rows)):
        far = np.empty(BLOCK, norms.dtype)
        for begin in range(0, len(norms), BLOCK):
            others = norms[begin : begin + BLOCK]
            products = squares.products[r, begin : begin + BLOCK]
            for c in range(len(others)):
                both = squares.own[r] + others[c]
                far[c] = both - (products[c] + products[c]) - squares.margin * both
            offer(nearest, r, rows[r], far, len(others), begin)


BLOCK = 64
MEMBERS = 128  # at a time: so few are most often near each other


class MemberSearch:
    """Lower bounds of average distances from matrix products, less what they may be wrong by."""

    def __init__(self, clusters: Clusters) -> None:
        self._clusters = clusters
        self._owners = clusters.owners()
        self._sizes = np.where(clusters.listed, clusters.sizes, 0.0)
        self._products = clusters.products()

    def nearest(self, rows: IntArray, num_wanted: int) -> Iterator[Found]:
        """See `Search`."""
        clusters = self._clusters
        most = min(MEMBERS, max(1, CHUNK_BYTES // (4 * len(clusters.points))))
        members, counts = clusters.points_of(rows)
        stops = np.cumsum(counts)
        first = 0
        while first < len(rows):
            done = stops[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(stops, done + most, side="right")))
            part = members[done : stops[last - 1]]
            nearest = room_for(last - first, num_wanted)
            _add_up(
                rows[first:last],
                stops[first:last] - done,
                part,
                self._products.of(part),
                self._owners,
                clusters.members()._replace(sizes=self._sizes),
                nearest,
            )
            outside = farthest(nearest) * self._products.scale
            yield found(clusters, rows[first:last], nearest, outside)
            first = last


@kernel
def _add_up(
    rows: IntArray,
    stops: IntArray,
    part: IntArray,
    squares: Squares,
    owners: IntArray,
    members: Members,
    nearest: Nearest,
) -> None:
    norms, weights = squares.norms, members.weights
    for r in numba.prange(len(rows)):
        sums = np.zeros(len(members.sizes))
        far = np.empty(BLOCK, norms.dtype)
        for m in range(stops[r - 1] if r else 0, stops[r]):
            for begin in range(0, len(norms), BLOCK):
                others = norms[begin : begin + BLOCK]
                products = squares.products[m, begin : begin + BLOCK]
                for c in range(len(others)):
                    both = squares.own[m] + others[c]
                    square = both - (products[c] + products[c]) - squares.margin * both
                    far[c] = np.sqrt(square) if square > 0.0 else 0.0
                for c in range(len(others)):
                    sums[owners[begin + c]] += weights[part[m]] * weights[begin + c] * far[c]
        _offer_means(r, rows[r], sums, members.sizes, nearest)


@inline
def _offer_means(r: int, i: int, sums: FloatArray, sizes: FloatArray, nearest: Nearest) -> None:
    """Offer sums divided by sizes to row ``r``, slot ``i``; what is not to be found has size 0."""
    far = np.empty(BLOCK)
    for begin in range(0, len(sizes), BLOCK):
        width = min(BLOCK, len(sizes) - begin)
        for c in range(width):
            size = sizes[begin + c]
            far[c] = sums[begin + c] / (size * sizes[i]) if size > 0.0 else np.inf
        offer(nearest, r, i, far, width, begin)
