"""Candidate lists inside compiled loops: sorted insertion, ties, and what has no room.

Equal distances are ordered by a hash of the pair, the same from both ends: a fixed order would make
every cluster choose the same neighbour where all distances are equal, and merge one pair a round.

Legend: n slots, k entries a list.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from masc_core.kernel import inline
from masc_core.tree.upgma.types import FloatArray, IdArray, IntArray, Slot

NOBODY = np.int32(-1)


class Lists(NamedTuple):
    """The lists of all slots.

    Attributes
    ----------
    ids : int32 (n, k), slots, in ascending order of distance
    distances : float64 (n, k)
    lengths : int32 (n,)
    lower_bound : float64 (n,), no cluster outside the list is nearer
    """

    ids: IdArray
    distances: FloatArray
    lengths: IdArray
    lower_bound: FloatArray


class Draft(NamedTuple):
    """A list in the making, with room for more than it will keep.

    Attributes
    ----------
    ids, distances : (at least k + 1,), in ascending order of distance
    length : int64 (1,)
    lower_bound : float64 (1,), no cluster outside the list is nearer
    """

    ids: IdArray
    distances: FloatArray
    length: IntArray
    lower_bound: FloatArray


@inline
def new_draft(room: int, lower_bound: float) -> Draft:
    """An empty list."""
    return Draft(
        np.empty(room, np.int32), np.empty(room), np.zeros(1, np.int64), np.full(1, lower_bound)
    )


@inline
def insert(draft: Draft, nodes: IntArray, i: Slot, j: Slot, distance: float) -> None:
    """Put ``j`` at its place in the list of ``i``, unless it is farther than ``lower_bound``.

    Parameters
    ----------
    draft : has room for one more entry
    nodes : int64 (n,), node of the tree in each slot
    """
    if distance > draft.lower_bound[0]:
        return
    at = draft.length[0]
    while at > 0 and (
        draft.distances[at - 1] > distance
        or (
            draft.distances[at - 1] == distance
            and _tie(nodes[i], nodes[draft.ids[at - 1]]) > _tie(nodes[i], nodes[j])
        )
    ):
        draft.ids[at], draft.distances[at] = draft.ids[at - 1], draft.distances[at - 1]
        at -= 1
    draft.ids[at], draft.distances[at] = j, distance
    draft.length[0] += 1


@inline
def crop(draft: Draft, width: int) -> None:
    """Leave out what has no room among ``width`` entries, or is farther than ``lower_bound``."""
    if draft.length[0] > width:
        draft.lower_bound[0] = min(draft.lower_bound[0], draft.distances[width])
        draft.length[0] = width
    while draft.length[0] > 0 and draft.distances[draft.length[0] - 1] > draft.lower_bound[0]:
        draft.length[0] -= 1


@inline
def store(draft: Draft, lists: Lists, i: Slot) -> None:
    """Make the draft the list of slot ``i``."""
    crop(draft, lists.ids.shape[1])
    length = draft.length[0]
    lists.ids[i, :length] = draft.ids[:length]
    lists.distances[i, :length] = draft.distances[:length]
    lists.lengths[i] = length
    lists.lower_bound[i] = draft.lower_bound[0]


@inline
def _tie(first: Slot, second: Slot) -> np.uint64:
    """Hash of a pair of nodes, in either order (the finaliser of SplitMix64)."""
    low, high = np.uint64(min(first, second)), np.uint64(max(first, second))
    x = high * np.uint64(0x9E3779B97F4A7C15) + low
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
