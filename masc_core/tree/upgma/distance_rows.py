"""Rows of distances for wide clusters, which candidate lists serve badly.

Where thousands of codes lie close together among spread ones (unused codes of a codebook), their
cluster is the nearest neighbour of most others, and takes them in one after the other. Its list
would run empty again and again, and every search sum over all of its members. Such a cluster keeps
its average distance to every other one instead, and is in no list. A merge updates the row (Lance
and Williams, 1967) with that of the cluster taken in, which is summed once: a point's distances to
all others are taken once at most, however many merges there are.

Legend: n slots, h rows.
"""

from __future__ import annotations

import numba
import numpy as np

from masc_core.arrays import BoolArray, FloatArray, IdArray, IntArray
from masc_core.numba_jit import njit_parallel
from masc_core.tree.upgma.clusters import Clusters
from masc_core.tree.upgma.distances import ClusterIndex, Members, pair_sum

MAX_ROWS = 16  # each takes 8 bytes a cluster


class DistanceRows:
    """The rows of one moment, none at first.

    Parameters
    ----------
    clusters : the same object at every moment

    Attributes
    ----------
    slots : int64 (h,), the clusters that have a row
    rows : float64 (h, n), average distances; infinite to dead slots, and to the cluster itself
    """

    def __init__(self, clusters: Clusters) -> None:
        self._clusters = clusters
        self.slots = np.empty(0, np.int64)
        self.rows = np.empty((0, len(clusters.alive)))

    def add(self, slots: IntArray) -> IntArray:
        """Give rows to ``slots`` while there is room; those that got one. Lists must drop them."""
        slots = slots[: MAX_ROWS - len(self.slots)]
        for slot in slots:
            row = self._row(slot)
            self._clusters.has_row[slot] = True
            self.slots = np.append(self.slots, slot)
            self.rows = np.concatenate([self.rows, row[None]])
        return slots

    def least(self) -> FloatArray:
        """Distance of every slot to the nearest cluster with a row, (n,); infinite without any."""
        return self.rows.min(axis=0, initial=np.inf)

    def update_nearest(self, nearest: IntArray, distances: FloatArray) -> None:
        """Complete what every slot knows from its list, in place.

        Parameters
        ----------
        nearest : int64 (n,), the nearest without a row
        distances : float64 (n,), its average distance
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
        changed = np.flatnonzero(clusters.has_row[into] | clusters.has_row[dropped])
        slots = np.setdiff1d(self.slots, np.concatenate([into[changed], dropped[changed]]))
        rows = [self._row(slot) for slot in slots]
        for pair in changed:
            first, second = self._row(into[pair]), self._row(dropped[pair])
            rows.append(_mean(first, second, sizes[0][pair], sizes[1][pair]))
        self.slots = np.concatenate([slots, into[changed]])
        self.rows = np.stack(rows)
        # The columns merge as the clusters do.
        self.rows[:, into] = _mean(self.rows[:, into], self.rows[:, dropped], *sizes)
        self.rows[:, dropped] = np.inf
        self.rows[np.arange(len(self.slots)), self.slots] = np.inf

    def compact(self, kept: IntArray, number: IdArray) -> None:
        """Keep the slots ``kept``; ``number`` (n,) is the new number of each slot."""
        self.slots = number[self.slots].astype(np.int64)
        self.rows = np.ascontiguousarray(self.rows[:, kept])

    def _row(self, slot: ClusterIndex) -> FloatArray:
        """Average distances of any cluster, (n,)."""
        clusters = self._clusters
        if clusters.has_row[slot]:
            return self.rows[np.argmax(self.slots == slot)]
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
    return (first_size * first + second_size * second) / (first_size + second_size)


@njit_parallel
def _sum_up(slot: ClusterIndex, others: BoolArray, members: Members, row: FloatArray) -> None:
    """Average distances of one slot to ``others`` (n,), to their places in ``row`` (n,)."""
    for i in numba.prange(len(row)):
        if others[i] and i != slot:
            scale = members.sizes[slot] * members.sizes[i]
            row[i] = pair_sum(members, slot, i, np.inf) / scale
