"""Nearest centroids in few dimensions: a scan that skips blocks by their bounding boxes.

The mean distance of two clusters is never less than the distance of their centroids (Jensen's
inequality), so a cluster beyond the m nearest centroids is at least as far as the last of these.

Legend: n slots, E dimensions, R rows that ask, b blocks of `BLOCK` consecutive slots.
"""

from __future__ import annotations

from collections.abc import Iterator

import numba
import numpy as np

from masc_core.kernel import inline, kernel
from masc_core.tree.upgma.clusters import Clusters
from masc_core.tree.upgma.found import Found, found, parts
from masc_core.tree.upgma.heap import Nearest, farthest, limit, offer, room_for
from masc_core.tree.upgma.tiles import tile_squares, tiles_of
from masc_core.tree.upgma.types import FloatArray, IntArray

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
