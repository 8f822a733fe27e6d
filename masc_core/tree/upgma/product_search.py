"""Nearest centroids in many dimensions, where boxes tell nothing: matrix products.

See `masc_core.tree.upgma.box_search` for the bound.
"""

from __future__ import annotations

from collections.abc import Iterator

import numba
import numpy as np

from masc_core.kernel import kernel
from masc_core.tree.upgma.clusters import Clusters
from masc_core.tree.upgma.found import Found, found, parts
from masc_core.tree.upgma.heap import Nearest, farthest, offer, room_for
from masc_core.tree.upgma.products import Products, Squares
from masc_core.tree.upgma.types import IntArray

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
