"""Certified candidate lists: a few near clusters for each, and a distance that no other is under.

A list of cluster ``i`` holds clusters with their exact distances, ascending. Every cluster that is
not in it is at least ``lower_bound[i]`` away. While the list has an entry, its first one is
therefore a nearest neighbour, without a look at anything else. Merging keeps the lists true
(`masc_core.tree.upgma.rounds`); one that runs empty is filled again by a search
(`masc_core.tree.upgma.search`).

Legend: n slots, of which some are alive; k entries a list; R rows.
"""

from __future__ import annotations

import numba
import numpy as np

from masc_core.kernel import inline, kernel
from masc_core.tree.upgma.candidate_lists import (
    NOBODY,
    Lists,
    crop,
    insert,
    merge_lists,
    new_draft,
    store,
)
from masc_core.tree.upgma.clusters import ROUNDING, Clusters
from masc_core.tree.upgma.distances import Members, distance, mean_distance
from masc_core.tree.upgma.hubs import Hubs
from masc_core.tree.upgma.search import BoxSearch, Found, MemberSearch, ProductSearch, Search
from masc_core.tree.upgma.types import BoolArray, FloatArray, IdArray, IntArray, Slot

BUDGET = 2048.0  # pairs of points that keeping one entry may cost


class Candidates:
    """The lists of all slots, empty at first.

    Parameters
    ----------
    num_clusters : n
    width : k

    Attributes
    ----------
    lists : see `Lists`
    """

    def __init__(self, num_clusters: int, width: int) -> None:
        self.lists = Lists(
            np.full((num_clusters, width), NOBODY),
            np.full((num_clusters, width), np.inf),
            np.zeros(num_clusters, np.int32),
            np.zeros(num_clusters),
        )

    def empty(self, rows: IntArray) -> IntArray:
        """Those of ``rows`` (R,) whose lists are empty."""
        empty: IntArray = rows[self.lists.lengths[rows] == 0]
        return empty

    def nearest(self) -> tuple[IntArray, FloatArray]:
        """First entry of every list, and its distance: infinite where there is none, (n,)."""
        full = self.lists.lengths > 0
        distances = np.where(full, self.lists.distances[:, 0], np.inf)
        return self.lists.ids[:, 0].astype(np.int64), distances

    def drop(self, slots: IntArray) -> None:
        """Forget the lists of ``slots`` (R,), and these slots in all others."""
        if not len(slots):
            return
        dropped = np.zeros(len(self.lists.lengths), np.bool_)
        dropped[slots] = True
        self.lists.lengths[slots] = 0
        _drop(dropped, self.lists)

    def fill(self, clusters: Clusters, found: Found) -> None:
        """Replace the lists of the rows of ``found`` by the nearest of what was found."""
        _fill(found.rows, found.ids, found.counts, found.outside, clusters.members(), self.lists)

    def fill_exhaustively(self, clusters: Clusters, rows: IntArray) -> None:
        """Replace the lists of ``rows`` (R,) by the nearest of all, whatever that takes."""
        rounding = clusters.rounding(rows, np.zeros(len(rows)))
        _fill_exhaustively(
            rows, rounding, clusters.listed, clusters.centroids, clusters.members(), self.lists
        )

    def merge(self, clusters: Clusters, into: IntArray, dropped: IntArray) -> None:
        """Bring the lists to the state after a round, of which ``clusters`` has only the new nodes.

        Parameters
        ----------
        into, dropped : int64 (p,), the slots that merge, lower ones, which survive, and higher ones
        """
        if not len(into):
            return
        partner = np.full(len(clusters.alive), -1, np.int32)
        partner[into], partner[dropped] = dropped, into
        merge_lists(partner, clusters.alive, clusters.members(), self.lists, BUDGET)

    def compact(self, kept: IntArray, place: IdArray) -> None:
        """Keep the lists of the slots ``kept``; ``place`` (n,) is the new number of each slot."""
        ids, distances, lengths, lower_bound = self.lists
        self.lists = Lists(place[ids[kept]], distances[kept], lengths[kept], lower_bound[kept])


@kernel
def _drop(dropped: BoolArray, lists: Lists) -> None:
    for i in numba.prange(len(dropped)):
        _close_gaps(i, dropped, lists)


@inline
def _close_gaps(i: Slot, dropped: BoolArray, lists: Lists) -> None:
    ids, distances = lists.ids[i], lists.distances[i]
    length = 0
    for c in range(lists.lengths[i]):
        if not dropped[ids[c]]:
            ids[length], distances[length] = ids[c], distances[c]
            length += 1
    lists.lengths[i] = length


@kernel
def _fill(
    rows: IntArray,
    found: IdArray,
    counts: IntArray,
    outside: FloatArray,
    members: Members,
    lists: Lists,
) -> None:
    width = lists.ids.shape[1]
    for r in numba.prange(len(rows)):
        i = rows[r]
        draft = new_draft(width + 1, outside[r])
        for c in range(counts[r]):
            j = found[r, c]
            insert(draft, members.nodes, i, j, mean_distance(members, i, j, draft.lower_bound[0]))
            crop(draft, width)
        store(draft, lists, i)


@kernel
def _fill_exhaustively(
    rows: IntArray,
    rounding: FloatArray,
    listed: BoolArray,
    centroids: FloatArray,
    members: Members,
    lists: Lists,
) -> None:
    num_slots, width = lists.ids.shape
    for r in numba.prange(len(rows)):
        i = rows[r]
        draft = new_draft(width + 1, np.inf)
        for step in range(2, 2 * num_slots + 2):
            # Outwards from i: neighbours in the order of slots are neighbours in space.
            j = i + step // 2 * (1 - 2 * (step % 2))
            if j < 0 or j >= num_slots or not listed[j]:
                continue
            # D is at least the distance of the centroids, whose rounding grows with it.
            least = distance(centroids, i, j) * (1.0 - ROUNDING) - rounding[r]
            if least <= draft.lower_bound[0]:
                insert(
                    draft, members.nodes, i, j, mean_distance(members, i, j, draft.lower_bound[0])
                )
                crop(draft, width)
        store(draft, lists, i)


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
