"""Single linkage: the minimum spanning tree of the points, in linear memory.

Prim's algorithm adds the point nearest to the tree, V-1 times; the edges in ascending order are the
merges (Gower and Ross, 1969).

Legend: V codes, E dimensions.
"""

from __future__ import annotations

import numpy as np

from masc_core.kernel import serial
from masc_core.tree.upgma.history import History
from masc_core.tree.upgma.pairs import distance
from masc_core.tree.upgma.types import FloatArray, IntArray, Report


def single_linkage(rows: FloatArray, report: Report) -> FloatArray:
    """The full tree.

    Parameters
    ----------
    rows : float64 (V, E), finite
    report : called with merges done, merges in all, and what is being done

    Returns
    -------
    float64 (V-1, 4), SciPy's convention
    """
    count = len(rows)
    inside = np.zeros(count, np.int64)
    outside = np.arange(1, count)
    gaps = np.full(count, np.inf)
    edges = np.empty((count - 1, 2), np.int64)
    heights = np.empty(count - 1)
    for start in range(0, count - 1, STEP):
        _grow(rows, inside, outside, gaps, edges, heights, start, min(start + STEP, count - 1))
        report(min(start + STEP, count - 1), count - 1, "spanning tree")
    order = np.argsort(heights, kind="stable")
    history = History(count)
    history.note(*_nodes(edges[order]), heights[order])
    return history.linkage()


STEP = 1024  # points between two reports


@serial
def _grow(
    rows: FloatArray, inside: IntArray, outside: IntArray, gaps: FloatArray, edges: IntArray,
    heights: FloatArray, start: int, stop: int,
) -> None:  # fmt: skip
    """Add points to the tree.

    ``outside[:V-1-start]`` are the points that are not in it; ``inside[q]`` is the tree's point
    nearest to ``q``, at ``gaps[q]``, not counting the one added last.
    """
    for merge in range(start, stop):
        last = edges[merge - 1, 1] if merge else np.int64(0)
        left = len(outside) - merge
        best = 0
        for k in range(left):
            q = outside[k]
            gap = distance(rows, last, q)
            if gap < gaps[q]:
                gaps[q], inside[q] = gap, last
            if gaps[q] < gaps[outside[best]]:
                best = k
        q = outside[best]
        edges[merge, 0], edges[merge, 1], heights[merge] = inside[q], q, gaps[q]
        outside[best] = outside[left - 1]


@serial
def _nodes(edges: IntArray) -> tuple[IntArray, IntArray]:
    """Edges between points as merges of the nodes that hold them."""
    count = len(edges) + 1
    parent = np.arange(2 * count - 1)
    first, second = np.empty(count - 1, np.int64), np.empty(count - 1, np.int64)
    for merge in range(count - 1):
        for side in range(2):
            node = edges[merge, side]
            while parent[node] != node:
                parent[node] = parent[parent[node]]
                node = parent[node]
            if side == 0:
                first[merge] = node
            else:
                second[merge] = node
        parent[first[merge]] = parent[second[merge]] = count + merge
    return first, second
