"""The nearest of many, kept in a heap while they are offered block by block.

Legend: R rows that ask, m clusters wanted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from masc_core.kernel import inline
from masc_core.tree.upgma.types import FloatArray, IdArray, IntArray, ProductArray


class Nearest(NamedTuple):
    """The nearest so far of every row.

    Attributes
    ----------
    ids : int32 (R, m)
    distances : float64 (R, m), once all places of a row are taken a heap, the farthest at place 0
    counts : int64 (R,), places taken
    """

    ids: IdArray
    distances: FloatArray
    counts: IntArray


def room_for(num_rows: int, num_wanted: int) -> Nearest:
    """Nothing found yet."""
    return Nearest(
        np.zeros((num_rows, num_wanted), np.int32),
        np.full((num_rows, num_wanted), np.inf),
        np.zeros(num_rows, np.int64),
    )


def farthest(nearest: Nearest) -> FloatArray:
    """What is no nearer than this was not kept, (R,); infinite where places are left."""
    full = nearest.counts == nearest.distances.shape[1]
    return np.where(full, nearest.distances[:, 0], np.inf)


@inline
def limit(nearest: Nearest, r: int) -> float:
    """What is no nearer than this to row ``r`` is not kept."""
    full = nearest.counts[r] == nearest.distances.shape[1]
    return nearest.distances[r, 0] if full else np.inf


@inline
def offer(nearest: Nearest, r: int, own: int, far: ProductArray, width: int, begin: int) -> None:
    """Offer the slots ``begin + c`` at ``far[c]``, c < ``width``, to row ``r``, slot ``own``."""
    worst = limit(nearest, r)
    nearer = 0
    for c in range(width):
        nearer += far[c] < worst
    if nearer == 0:  # as in most blocks, and counted without a branch
        return
    for c in range(width):
        if far[c] < worst and begin + c != own:
            _keep(nearest, r, begin + c, far[c])
            worst = limit(nearest, r)


@inline
def _keep(nearest: Nearest, r: int, j: int, far: float) -> None:
    ids, distances = nearest.ids[r], nearest.distances[r]
    count, width = nearest.counts[r], len(ids)
    if count == width:
        ids[0], distances[0] = j, far
        _sift(0, ids, distances)
        return
    ids[count], distances[count] = j, far
    nearest.counts[r] = count + 1
    if count + 1 == width:
        for start in range(width // 2 - 1, -1, -1):
            _sift(start, ids, distances)


@inline
def _sift(at: int, ids: IdArray, distances: FloatArray) -> None:
    """Let an entry sink to its place in the heap."""
    width = len(ids)
    while 2 * at + 1 < width:
        child = 2 * at + 1
        if child + 1 < width and distances[child + 1] > distances[child]:
            child += 1
        if distances[child] <= distances[at]:
            return
        ids[at], ids[child] = ids[child], ids[at]
        distances[at], distances[child] = distances[child], distances[at]
        at = child
