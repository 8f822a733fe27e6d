"""Candidate lists inside compiled loops: sorted insertion, ties, and what merges do to them.

Average linkage is a weighted mean of distances (Lance and Williams, 1967):

    D(i, A u B) = (|A| D(i, A) + |B| D(i, B)) / (|A| + |B|)

so a cluster made of two that were outside a list stays outside, and the list of ``i u j`` holds
what the lists of ``i`` and ``j`` held, with the lower bound
``(|i| lower_bound[i] + |j| lower_bound[j]) / (|i| + |j|)``.
An unknown distance on the right is summed over members, and given up as soon as it is too large
to matter. If that needs more than `MAX_PAIRS` pairs, drop the entry and lower ``lower_bound`` to
the formula's value with ``lower_bound`` for the unknown distance.

Legend: n slots, of which some are alive; k entries a list.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from masc_core.arrays import BoolArray, FloatArray, IdArray, IntArray
from masc_core.numba_jit import njit_parallel, njit_serial
from masc_core.tree.upgma.distances import ClusterIndex, Members, mean_distance, pair_sum

NO_SLOT = np.int32(-1)


class Lists(NamedTuple):
    """The lists of all slots."""

    ids: IdArray  # (n, k), slots, in ascending order of distance
    distances: FloatArray  # (n, k)
    lengths: IdArray  # (n,)
    lower_bound: FloatArray  # (n,), no cluster outside the list is nearer


class BoundedList(NamedTuple):
    """A sorted list in the making, which `truncate` keeps to a length."""

    ids: IdArray  # (at least k + 1,), in ascending order of distance
    distances: FloatArray
    length: IntArray  # (1,)
    lower_bound: FloatArray  # (1,), no cluster outside the list is nearer


@njit_parallel
def update_lists(
    partner: IdArray, alive: BoolArray, members: Members, lists: Lists, max_pairs: float
) -> None:
    """Bring the lists to the state after a round of merges.

    Parameters
    ----------
    partner : int32 (n,), the slot that each merges with, or -1; the lower slot survives
    alive : bool (n,), before the round
    members : before the round, but for the nodes
    max_pairs : pairs of points that keeping an entry may cost
    """
    width = lists.ids.shape[1]
    for slot in numba.prange(len(partner)):
        i, j = np.int64(slot), np.int64(partner[slot])
        if not alive[i] or 0 <= j < i or not _changes(i, partner, lists):
            continue
        list_i = new_bounded_list(width + 1, lists.lower_bound[i])
        _apply_merges(list_i, i, partner, members, lists, max_pairs)
        if j >= 0:
            list_j = new_bounded_list(width + 1, lists.lower_bound[j])
            _apply_merges(list_j, j, partner, members, lists, max_pairs)
            total = members.sizes[i] + members.sizes[j]
            share = members.sizes[j] / total
            merged = new_bounded_list(
                2 * width + 1, (1.0 - share) * list_i.lower_bound[0] + share * list_j.lower_bound[0]
            )
            _merge_lists(merged, list_i, list_j, i, j, partner, members, max_pairs)
            _merge_lists(merged, list_j, list_i, j, i, partner, members, max_pairs)
            list_i = merged
        store_list(list_i, lists, i)


@njit_serial
def _changes(i: ClusterIndex, partner: IdArray, lists: Lists) -> bool:
    """Whether slot ``i``, or anything in its list, merges."""
    changes: bool = partner[i] >= 0
    for c in range(lists.lengths[i]):
        changes = changes or partner[lists.ids[i, c]] >= 0
    return changes


@njit_serial
def _apply_merges(
    bounded: BoundedList,
    i: ClusterIndex,
    partner: IdArray,
    members: Members,
    lists: Lists,
    max_pairs: float,
) -> None:
    """The list that slot ``i`` had before the round, of the clusters after it but its own."""
    sizes, ids, distances = members.sizes, lists.ids[i], lists.distances[i]
    for c in range(lists.lengths[i]):
        a, b = ids[c], partner[ids[c]]
        if b == i:
            continue
        if b < 0:
            insert(bounded, members.nodes, i, a, distances[c])
            continue
        at = _index_of(b, ids, lists.lengths[i])
        if 0 <= at < c:
            continue  # the pair has been entered already
        total = sizes[a] + sizes[b]
        if at >= 0:  # both parts are listed: no distance is summed
            mean = (sizes[a] * distances[c] + sizes[b] * distances[at]) / total
        elif sizes[i] * sizes[b] > max_pairs:
            least = (sizes[a] * distances[c] + sizes[b] * bounded.lower_bound[0]) / total
            bounded.lower_bound[0] = min(bounded.lower_bound[0], least)
            continue
        else:
            # D(i, b) beyond this would put the mean above the lower bound.
            bound = (bounded.lower_bound[0] * total - sizes[a] * distances[c]) / sizes[b]
            other = mean_distance(members, i, b, bound)
            mean = (sizes[a] * distances[c] + sizes[b] * other) / total
        insert(bounded, members.nodes, i, min(a, b), mean)


@njit_serial
def _merge_lists(
    merged: BoundedList,
    list_i: BoundedList,
    list_j: BoundedList,
    i: ClusterIndex,
    j: ClusterIndex,
    partner: IdArray,
    members: Members,
    max_pairs: float,
) -> None:
    """Enter what the list of ``i`` holds into that of ``i u j``; strike it out of that of ``j``.

    What the list of ``j`` does not hold is at least ``list_j.lower_bound`` away from ``j``.
    """
    sizes = members.sizes
    total = sizes[i] + sizes[j]
    for c in range(list_i.length[0]):
        a, distance = list_i.ids[c], list_i.distances[c]
        if a == NO_SLOT:
            continue
        at = _index_of(a, list_j.ids, list_j.length[0])
        if at >= 0:
            other = list_j.distances[at]
            list_j.ids[at] = NO_SLOT
        elif sizes[j] * _size_after(a, partner, members) > max_pairs:
            least = (sizes[i] * distance + sizes[j] * list_j.lower_bound[0]) / total
            merged.lower_bound[0] = min(merged.lower_bound[0], least)
            continue
        else:
            bound = (merged.lower_bound[0] * total - sizes[i] * distance) / sizes[j]
            other = _distance_after(j, a, partner, members, bound)
        mean = (sizes[i] * distance + sizes[j] * other) / total
        insert(merged, members.nodes, min(i, j), a, mean)


@njit_serial
def _index_of(j: ClusterIndex, ids: IdArray, length: int) -> int:
    """Index of ``j`` in ``ids[:length]``, or -1."""
    for c in range(length):
        if ids[c] == j:
            return c
    return -1


@njit_serial
def _size_after(j: ClusterIndex, partner: IdArray, members: Members) -> float:
    """Size of what slot ``j`` is after the round."""
    other = partner[j]
    return members.sizes[j] if other < 0 else members.sizes[j] + members.sizes[other]


@njit_serial
def _distance_after(
    i: ClusterIndex, j: ClusterIndex, partner: IdArray, members: Members, limit: float
) -> float:
    """D of slot ``i`` before the round to what slot ``j`` is after it; infinity above ``limit``."""
    scale = members.sizes[i] * _size_after(j, partner, members)
    total = pair_sum(members, i, j, limit * scale)
    if partner[j] >= 0 and total <= limit * scale:
        total += pair_sum(members, i, partner[j], limit * scale - total)
    mean: float = total / scale
    return mean if mean <= limit else np.inf


@njit_serial
def new_bounded_list(room: int, lower_bound: float) -> BoundedList:
    """An empty list."""
    return BoundedList(
        np.empty(room, np.int32), np.empty(room), np.zeros(1, np.int64), np.full(1, lower_bound)
    )


@njit_serial
def insert(
    bounded: BoundedList, nodes: IntArray, i: ClusterIndex, j: ClusterIndex, distance: float
) -> None:
    """Put ``j`` at its place in the list of ``i``, unless it is farther than ``lower_bound``.

    Parameters
    ----------
    bounded : has room for one more entry
    nodes : int64 (n,), node of the tree in each slot
    """
    if distance > bounded.lower_bound[0]:
        return
    at = bounded.length[0]
    while at > 0 and (
        bounded.distances[at - 1] > distance
        or (
            bounded.distances[at - 1] == distance
            and _tie(nodes[i], nodes[bounded.ids[at - 1]]) > _tie(nodes[i], nodes[j])
        )
    ):
        bounded.ids[at], bounded.distances[at] = bounded.ids[at - 1], bounded.distances[at - 1]
        at -= 1
    bounded.ids[at], bounded.distances[at] = j, distance
    bounded.length[0] += 1


@njit_serial
def truncate(bounded: BoundedList, width: int) -> None:
    """Leave out what has no room among ``width`` entries, or is farther than ``lower_bound``."""
    if bounded.length[0] > width:
        bounded.lower_bound[0] = min(bounded.lower_bound[0], bounded.distances[width])
        bounded.length[0] = width
    while (
        bounded.length[0] > 0 and bounded.distances[bounded.length[0] - 1] > bounded.lower_bound[0]
    ):
        bounded.length[0] -= 1


@njit_serial
def store_list(bounded: BoundedList, lists: Lists, i: ClusterIndex) -> None:
    """Truncate it, and make it the list of slot ``i``."""
    truncate(bounded, lists.ids.shape[1])
    length = bounded.length[0]
    lists.ids[i, :length] = bounded.ids[:length]
    lists.distances[i, :length] = bounded.distances[:length]
    lists.lengths[i] = length
    lists.lower_bound[i] = bounded.lower_bound[0]


@njit_serial
def _tie(first: ClusterIndex, second: ClusterIndex) -> np.uint64:
    """Hash of a pair of nodes, in either order (the finaliser of SplitMix64).

    A fixed order of equal distances would make every cluster choose the same neighbour where all
    distances are equal, and merge one pair a round.
    """
    low, high = np.uint64(min(first, second)), np.uint64(max(first, second))
    x = high * np.uint64(0x9E3779B97F4A7C15) + low
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
