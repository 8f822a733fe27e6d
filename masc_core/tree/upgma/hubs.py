"""Wide clusters that know their average distance to every other one.

Where thousands of codes lie close together among spread ones, their cluster is the nearest
neighbour of most others, and takes them in one after the other. A candidate list is a poor memory
there: the cluster's own list runs empty again and again, and a search has to sum over all of its
members. Such a hub keeps a row of distances instead, and is in no list. A merge updates the row
(Lance and Williams, 1967) with that of the cluster taken in, which is summed once: a point's
distances to all others are taken once at most, however many merges there are.

Legend: n slots, h hubs.
"""

from __future__ import annotations

import numba
import numpy as np

from masc_core.kernel import kernel
from masc_core.tree.upgma.clusters import Clusters
from masc_core.tree.upgma.distances import Members, pair_sum
from masc_core.tree.upgma.types import BoolArray, FloatArray, IdArray, IntArray, Slot

MOST = 16  # hubs; each takes 8 bytes a cluster


class Hubs:
    """The hubs of one moment, none at first.

    Parameters
    ----------
    clusters : the same object at every moment

    Attributes
    ----------
    slots : int64 (h,), the hubs
    rows : float64 (h, n), average distances; infinite to dead slots, and to the hub itself
    """

    def __init__(self, clusters: Clusters) -> None:
        self._clusters = clusters
        self.slots = np.empty(0, np.int64)
        self.rows = np.empty((0, len(clusters.alive)))

    @property
    def room(self) -> int:
        """How many clusters may still become hubs."""
        return MOST - len(self.slots)

    def add(self, slots: IntArray) -> None:
        """Make the clusters in ``slots`` hubs, at most `room`; lists have to drop them."""
        for slot in slots:
            row = self._row(slot)
            self._clusters.hubs[slot] = True
            self.slots = np.append(self.slots, slot)
            self.rows = np.concatenate([self.rows, row[None]])

    def distances(self) -> FloatArray:
        """Average distance of every slot to the nearest hub, float64 (n,); infinite without any."""
        least: FloatArray = self.rows.min(axis=0, initial=np.inf)
        return least

    def nearer(self, nearest: IntArray, distances: FloatArray) -> None:
        """Let hubs into what every slot knows of its nearest neighbour, and hubs know theirs.

        Parameters
        ----------
        nearest : int64 (n,), the nearest that is no hub, changed in place
        distances : float64 (n,), its average distance, changed in place
        """
        for slot, row in zip(self.slots, self.rows, strict=True):
            nearest[row < distances] = slot
            np.minimum(distances, row, out=distances)
        if len(self.slots):
            nearest[self.slots] = self.rows.argmin(axis=1)
            distances[self.slots] = self.rows.min(axis=1)

    def merge(self, into: IntArray, dropped: IntArray) -> None:
        """Bring the rows to the state after a round; ``clusters`` is as it was before it.

        Parameters
        ----------
        into, dropped : int64 (p,), the slots that merge, of which the first survive
        """
        if not len(self.slots):
            return
        clusters = self._clusters
        sizes = clusters.sizes[into], clusters.sizes[dropped]
        taken = np.flatnonzero(clusters.hubs[into] | clusters.hubs[dropped])
        slots = np.setdiff1d(self.slots, np.concatenate([into[taken], dropped[taken]]))
        rows = [self._row(slot) for slot in slots]
        for pair in taken:
            first, second = self._row(into[pair]), self._row(dropped[pair])
            rows.append(_mean(first, second, sizes[0][pair], sizes[1][pair]))
        self.slots = np.concatenate([slots, into[taken]])
        self.rows = np.stack(rows)
        self.rows[:, into] = _mean(self.rows[:, into], self.rows[:, dropped], *sizes)
        self.rows[:, dropped] = np.inf
        self.rows[np.arange(len(self.slots)), self.slots] = np.inf

    def compact(self, kept: IntArray, place: IdArray) -> None:
        """Keep the slots ``kept``; ``place`` (n,) is the new number of each slot."""
        self.slots = place[self.slots].astype(np.int64)
        self.rows = np.ascontiguousarray(self.rows[:, kept])

    def _row(self, slot: Slot) -> FloatArray:
        """Average distances of any cluster, (n,)."""
        clusters = self._clusters
        if clusters.hubs[slot]:
            known: FloatArray = self.rows[np.argmax(self.slots == slot)]
            return known
        row = np.full(len(clusters.alive), np.inf)
        row[self.slots] = self.rows[:, slot]
        _sum_up(slot, clusters.listed, clusters.members(), row)
        return row


def _mean(
    first: FloatArray,
    second: FloatArray,
    first_size: FloatArray | np.float64,
    second_size: FloatArray | np.float64,
) -> FloatArray:
    mean: FloatArray = (first_size * first + second_size * second) / (first_size + second_size)
    return mean


@kernel
def _sum_up(slot: Slot, others: BoolArray, members: Members, row: FloatArray) -> None:
    """Average distances of one slot to ``others`` (n,), to their places in ``row`` (n,)."""
    for i in numba.prange(len(row)):
        if others[i] and i != slot:
            scale = members.sizes[slot] * members.sizes[i]
            row[i] = pair_sum(members, slot, i, np.inf) / scale
