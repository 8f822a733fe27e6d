"""Certified candidate lists: some near clusters of each, and a lower bound on all other distances.

A list of cluster ``i`` holds clusters with their exact distances, ascending. Every cluster that is
not in it is at least ``lower_bound[i]`` away. While the list has an entry, its first one is
therefore a nearest neighbour, without a look at anything else. Merging keeps the lists true
(`candidate_lists`); one that runs empty is filled again by a search (`search`).

Legend: n slots, of which some are alive; k entries a list; R rows; p merges.
"""

from __future__ import annotations

import numba
import numpy as np

from masc_core.arrays import BoolArray, FloatArray, IntArray
from masc_core.numba_jit import njit_parallel, njit_serial
from masc_core.tree.upgma.candidate_lists import (
    NO_SLOT,
    Lists,
    insert,
    new_bounded_list,
    store_list,
    truncate,
    update_lists,
)
from masc_core.tree.upgma.clusters import ROUNDING, Clusters
from masc_core.tree.upgma.distance_rows import DistanceRows
from masc_core.tree.upgma.distances import (
    MANY_DIMENSIONS,
    ClusterIndex,
    Members,
    distance,
    mean_distance,
)
from masc_core.tree.upgma.search import BoxSearch, MemberSearch, ProductSearch, SearchResult

MAX_PAIRS = 2048.0  # pairs of points that keeping one entry may cost
COMPACT_BELOW = 0.8  # share of slots alive
NUM_CENTROIDS = 32  # nearest centroids that are looked at
FEW_ROWS = 8  # rows that look at every other cluster at once
NUM_CLUSTERS = 20  # nearest clusters, where what is known of them is nearly exact
SAMPLE = 256  # rows that show whether centroids of small clusters are worth comparing
FEW_POINTS = 64.0  # points of a cluster whose members may all be compared
MANY_POINTS = 512.0  # points of a cluster that gets a row of distances rather than look at all


class Candidates:
    """The lists of all clusters, empty at first.

    Parameters
    ----------
    clusters : changed by `merge`
    width : k

    Attributes
    ----------
    lists : see `Lists`
    """

    def __init__(self, clusters: Clusters, width: int) -> None:
        self._clusters = clusters
        self._distance_rows = DistanceRows(clusters)
        self._centroids_help = True
        num_slots = len(clusters.alive)
        self.lists = Lists(
            np.full((num_slots, width), NO_SLOT),
            np.full((num_slots, width), np.inf),
            np.zeros(num_slots, np.int32),
            np.zeros(num_slots),
        )

    def reciprocal_neighbours(self) -> tuple[IntArray, IntArray, FloatArray]:
        """Pairs of slots that are each other's nearest, (p,) lower and higher, and distances."""
        alive = np.flatnonzero(self._clusters.alive)
        nearest = self.lists.ids[:, 0].astype(np.int64)
        distances = np.where(self.lists.lengths > 0, self.lists.distances[:, 0], np.inf)
        self._distance_rows.update_nearest(nearest, distances)
        into = alive[(nearest[nearest[alive]] == alive) & (alive < nearest[alive])]
        if len(into):
            return into, nearest[into], distances[into]
        # Rounding can leave a tie without a mutual pair; the closest pair of all can always merge.
        least = alive[[np.argmin(distances[alive])]]
        pair = np.sort([least, nearest[least]], axis=0)
        return pair[0], pair[1], distances[least]

    def merge(self, into: IntArray, dropped: IntArray, nodes: IntArray) -> None:
        """Merge slots, (p,) each, into the lower ones, which become ``nodes`` of the tree."""
        clusters = self._clusters
        clusters.nodes[into] = nodes
        self._distance_rows.merge(into, dropped)
        by_row = clusters.has_row[into] | clusters.has_row[dropped]
        self._drop(np.concatenate([into[by_row], dropped[by_row]]))
        partner = np.full(len(clusters.alive), -1, np.int32)
        partner[into[~by_row]], partner[dropped[~by_row]] = dropped[~by_row], into[~by_row]
        update_lists(partner, clusters.alive, clusters.members(), self.lists, MAX_PAIRS)
        clusters.merge(into, dropped)
        if clusters.count < COMPACT_BELOW * len(clusters.alive):
            self._compact()

    def fill_empty(self) -> None:
        """See to it that every alive slot knows its nearest neighbour, by its list or a row.

        Centroids are compared first. In many dimensions their distances say little about clusters,
        so members are compared next. What is left are wide clusters, and ties: more neighbours at
        about one distance than were looked at. The wide ones get a row of distances while there is
        room, the others look at every other cluster.
        """
        clusters = self._clusters
        empty = self._unknown(np.flatnonzero(clusters.listed))
        if len(empty) <= FEW_ROWS:
            pass  # making a search ready would take longer
        elif clusters.points.shape[1] < MANY_DIMENSIONS:
            empty = self._search(BoxSearch(clusters), empty, NUM_CENTROIDS)
        else:
            empty = self._search_centroids(empty)
            few = clusters.sizes[empty] <= FEW_POINTS
            if few.any():
                left = self._search(MemberSearch(clusters), empty[few], NUM_CLUSTERS)
                empty = np.concatenate([empty[~few], left])
        if len(empty):
            self._fill_exhaustively(self._without_wide(empty))

    def _unknown(self, slots: IntArray) -> IntArray:
        """Slots of ``slots`` (R,) with an empty list and no wide cluster surely nearest."""
        empty = slots[self.lists.lengths[slots] == 0]
        known = self._distance_rows.least() <= self.lists.lower_bound
        return empty[~known[empty]]

    def _search_centroids(self, slots: IntArray) -> IntArray:
        """As `_search`; small clusters only until centroids filled less than half of the lists."""
        few = self._clusters.sizes[slots] <= FEW_POINTS
        queries = slots if self._centroids_help else slots[~few]
        if not len(queries):
            return slots
        left = self._search(ProductSearch(self._clusters), queries, NUM_CENTROIDS)
        if self._centroids_help:
            self._centroids_help = len(slots) < SAMPLE or 2 * len(left) <= len(slots)
            return left
        return np.concatenate([slots[few], left])

    def _search(
        self, search: BoxSearch | MemberSearch | ProductSearch, slots: IntArray, num_neighbours: int
    ) -> IntArray:
        """Fill the lists of ``slots``; those that still know none."""
        for result in search.nearest(slots, min(num_neighbours, len(self._clusters.alive))):
            _fill(result, self._clusters.members(), self.lists)
        return self._unknown(slots)

    def _without_wide(self, slots: IntArray) -> IntArray:
        """Give wide clusters among ``slots`` (R,) distance rows; those still without neighbour."""
        wide = self._distance_rows.add(slots[self._clusters.sizes[slots] >= MANY_POINTS])
        if not len(wide):
            return slots
        self._drop(wide)
        return self._unknown(np.setdiff1d(slots, wide))

    def _fill_exhaustively(self, slots: IntArray) -> None:
        """Replace the lists of ``slots`` (R,) by the nearest of all, whatever that takes."""
        clusters = self._clusters
        rounding = clusters.rounding(slots, np.zeros(len(slots)))
        _fill_from_all(
            slots, rounding, clusters.listed, clusters.centroids, clusters.members(), self.lists
        )

    def _drop(self, slots: IntArray) -> None:
        """Forget the lists of ``slots`` (R,), and these slots in all others."""
        if len(slots):
            dropped = np.zeros(len(self.lists.lengths), np.bool_)
            dropped[slots] = True
            self.lists.lengths[slots] = 0
            _remove(dropped, self.lists)

    def _compact(self) -> None:
        kept, number = self._clusters.compact()
        ids, distances, lengths, lower_bound = self.lists
        self.lists = Lists(number[ids[kept]], distances[kept], lengths[kept], lower_bound[kept])
        self._distance_rows.compact(kept, number)


@njit_parallel
def _remove(dropped: BoolArray, lists: Lists) -> None:
    for i in numba.prange(len(dropped)):
        _close_gaps(i, dropped, lists)


@njit_serial
def _close_gaps(i: ClusterIndex, dropped: BoolArray, lists: Lists) -> None:
    ids, distances = lists.ids[i], lists.distances[i]
    length = 0
    for c in range(lists.lengths[i]):
        if not dropped[ids[c]]:
            ids[length], distances[length] = ids[c], distances[c]
            length += 1
    lists.lengths[i] = length


@njit_parallel
def _fill(result: SearchResult, members: Members, lists: Lists) -> None:
    """Replace the lists of the rows of ``result`` by the nearest of what was found."""
    width = lists.ids.shape[1]
    for r in numba.prange(len(result.rows)):
        i = result.rows[r]
        bounded = new_bounded_list(width + 1, result.lower_bound[r])
        for c in range(result.counts[r]):
            j = result.ids[r, c]
            insert(
                bounded, members.nodes, i, j, mean_distance(members, i, j, bounded.lower_bound[0])
            )
            truncate(bounded, width)
        store_list(bounded, lists, i)


@njit_parallel
def _fill_from_all(
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
        bounded = new_bounded_list(width + 1, np.inf)
        for step in range(2, 2 * num_slots + 2):
            # Outwards from i: neighbours in the order of slots are neighbours in space.
            j = i + step // 2 * (1 - 2 * (step % 2))
            if j < 0 or j >= num_slots or not listed[j]:
                continue
            # D is at least the distance of the centroids, whose rounding grows with it.
            least = distance(centroids, i, j) * (1.0 - ROUNDING) - rounding[r]
            if least <= bounded.lower_bound[0]:
                insert(
                    bounded,
                    members.nodes,
                    i,
                    j,
                    mean_distance(members, i, j, bounded.lower_bound[0]),
                )
                truncate(bounded, width)
        store_list(bounded, lists, i)
