"""The merges of a tree, noted as they happen and brought into SciPy's order.

Legend: V codes, N distinct rows, E dimensions; node V+i is what the i-th merge noted makes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from masc_core.arrays import FloatArray, IntArray
from masc_core.numba_jit import njit_serial


class History:
    """Up to V-1 merges, in an order in which every cluster is made before it is merged."""

    def __init__(self, num_codes: int) -> None:
        self.num_codes = num_codes
        self.num_merges = 0
        self._nodes = np.empty((num_codes - 1, 2), np.int64)
        self._heights = np.empty(num_codes - 1)

    def append(self, first: IntArray, second: IntArray, heights: FloatArray) -> IntArray:
        """Note merges of nodes, (p,) each; the nodes that they make, int64 (p,)."""
        start, stop = self.num_merges, self.num_merges + len(first)
        self._nodes[start:stop, 0] = first
        self._nodes[start:stop, 1] = second
        self._heights[start:stop] = heights
        self.num_merges = stop
        return self.num_codes + np.arange(start, stop)

    def linkage(self) -> FloatArray:
        """All V-1 merges in SciPy's convention, float64 (V-1, 4), in ascending order of height.

        Merges of equal height stay in the order in which they were noted. Where rounding made a
        merge lower than one that it contains, it is raised to that.
        """
        heights = _raised(self._nodes, self._heights, self.num_codes)
        order = np.argsort(heights, kind="stable")
        number = np.empty_like(order)
        number[order] = np.arange(len(order))
        nodes = self._nodes[order]
        made = nodes >= self.num_codes
        nodes[made] = self.num_codes + number[nodes[made] - self.num_codes]
        nodes.sort(axis=1)
        sizes = _sizes(nodes, self.num_codes)
        return np.column_stack([nodes.astype(np.float64), heights[order], sizes])


class DistinctRows(NamedTuple):
    """Rows that differ, in the order of their first codes."""

    points: FloatArray  # (N, E)
    weights: FloatArray  # (N,), how often each occurs
    nodes: IntArray  # (N,), the node of the tree that holds all its codes


def distinct_rows(rows: FloatArray, history: History) -> DistinctRows:
    """Note the merges of equal rows (V, E), at height zero; what is left."""
    points, lowest, owners, counts = np.unique(
        rows + 0.0, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    if len(points) == len(rows):
        return DistinctRows(rows, np.ones(len(rows)), np.arange(len(rows)))
    nodes = lowest.astype(np.int64)
    for code in np.flatnonzero(lowest[owners] != np.arange(len(rows))):
        point = owners[code]
        nodes[point] = history.append(nodes[[point]], np.array([code]), np.zeros(1))[0]
    by_code = np.argsort(lowest)
    return DistinctRows(points[by_code], counts[by_code].astype(np.float64), nodes[by_code])


@njit_serial
def _raised(nodes: IntArray, heights: FloatArray, num_codes: int) -> FloatArray:
    raised = heights.copy()
    for i in range(len(nodes)):
        for side in range(2):
            child = nodes[i, side] - num_codes
            if child >= 0:
                raised[i] = max(raised[i], raised[child])
    return raised


@njit_serial
def _sizes(nodes: IntArray, num_codes: int) -> FloatArray:
    sizes = np.ones(num_codes + len(nodes))
    for i in range(len(nodes)):
        sizes[num_codes + i] = sizes[nodes[i, 0]] + sizes[nodes[i, 1]]
    return sizes[num_codes:]
