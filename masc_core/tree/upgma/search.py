"""Candidates for clusters that know none: whom to ask, and whom next if that tells too little.

Centroids are asked first. In many dimensions their distances tell little about clusters, so
products of the members are asked next. What is left are wide clusters, and ties: more neighbours at
about one distance than were wanted. The wide ones become hubs while there is room, the others look
at every other cluster.
"""

from __future__ import annotations

import numpy as np

from masc_core.tree.upgma.box_search import BoxSearch
from masc_core.tree.upgma.candidates import Candidates
from masc_core.tree.upgma.clusters import Clusters
from masc_core.tree.upgma.found import Search
from masc_core.tree.upgma.hubs import Hubs
from masc_core.tree.upgma.member_search import MemberSearch
from masc_core.tree.upgma.product_search import ProductSearch
from masc_core.tree.upgma.types import IntArray

WANTED = 32  # centroids that are looked at
MEMBERS_WANTED = 20  # clusters, where what is known of them is nearly exact
MANY_DIMENSIONS = 48  # from here on matrix products win (benchmarks/tree.py)
SAMPLE = 256  # rows that tell whether centroids of small clusters are worth asking
ALONE = 8  # rows that look at every other cluster at once
FEW = 64.0  # points of a cluster whose members may all be asked
WIDE = 512.0  # points of a cluster that becomes a hub rather than look at all others


class Searcher:
    """Fills empty lists, and remembers whether centroids are worth asking.

    Parameters
    ----------
    clusters, candidates, hubs : as they are when `fill_empty` is called
    """

    def __init__(self, clusters: Clusters, candidates: Candidates, hubs: Hubs) -> None:
        self._clusters = clusters
        self._candidates = candidates
        self._hubs = hubs
        self._centroids_tell = True

    def fill_empty(self) -> None:
        """See to it that every alive slot knows its nearest neighbour, from a list or as a hub."""
        clusters = self._clusters
        empty = self._unknown(np.flatnonzero(clusters.listed))
        if len(empty) <= ALONE:
            pass  # making a search ready would take longer
        elif clusters.points.shape[1] < MANY_DIMENSIONS:
            empty = self._ask(BoxSearch(clusters), empty, WANTED)
        else:
            empty = self._ask_centroids(empty)
            few = clusters.sizes[empty] <= FEW
            if few.any():
                left = self._ask(MemberSearch(clusters), empty[few], MEMBERS_WANTED)
                empty = np.concatenate([empty[~few], left])
        if len(empty):
            empty = self._add_hubs(empty)
            self._candidates.fill_exhaustively(clusters, empty)

    def _unknown(self, rows: IntArray) -> IntArray:
        """Those of ``rows`` (R,) whose lists are empty, with no hub surely nearer than all else."""
        empty = self._candidates.empty(rows)
        known = self._hubs.distances() <= self._candidates.lists.lower_bound
        unknown: IntArray = empty[~known[empty]]
        return unknown

    def _add_hubs(self, rows: IntArray) -> IntArray:
        """Make hubs of wide clusters among ``rows`` (R,); the others that still know none."""
        wide = rows[self._clusters.sizes[rows] >= WIDE][: self._hubs.room]
        if not len(wide):
            return rows
        self._hubs.add(wide)
        self._candidates.drop(wide)
        return self._unknown(np.setdiff1d(rows, wide))

    def _ask_centroids(self, rows: IntArray) -> IntArray:
        few = self._clusters.sizes[rows] <= FEW
        asked = rows if self._centroids_tell else rows[~few]
        if not len(asked):
            return rows
        left = self._ask(ProductSearch(self._clusters), asked, WANTED)
        if self._centroids_tell:
            self._centroids_tell = len(rows) < SAMPLE or 2 * len(left) <= len(rows)
            return left
        return np.concatenate([rows[few], left])

    def _ask(self, search: Search, rows: IntArray, num_wanted: int) -> IntArray:
        """Fill the lists of ``rows``; those that still know none."""
        for found in search.nearest(rows, min(num_wanted, len(self._clusters.alive))):
            self._candidates.fill(self._clusters, found)
        return self._unknown(rows)
