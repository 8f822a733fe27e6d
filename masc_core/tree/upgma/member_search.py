"""Average distances to all clusters from matrix products of the members with all points.

What to ask in many dimensions, where centroids tell little about clusters. Products are rounded, so
the answers are lower bounds, but close ones.

Legend: N points, n slots, R rows that ask, M members of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numba
import numpy as np

from masc_core.kernel import inline, kernel
from masc_core.tree.upgma.clusters import Clusters
from masc_core.tree.upgma.found import CHUNK_BYTES, Found, found
from masc_core.tree.upgma.heap import Nearest, farthest, offer, room_for
from masc_core.tree.upgma.pairs import Members
from masc_core.tree.upgma.products import Squares
from masc_core.tree.upgma.types import FloatArray, IntArray

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
