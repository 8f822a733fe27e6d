"""Equal rows, merged at height zero before anything else.

Legend: V codes, N distinct rows, E dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from masc_core.tree.upgma.history import History
from masc_core.tree.upgma.types import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class DistinctRows:
    """Rows that differ, in the order of their first codes.

    Attributes
    ----------
    points : float64 (N, E)
    weights : float64 (N,), how often each occurs
    nodes : int64 (N,), the node of the tree that holds all its codes
    """

    points: FloatArray
    weights: FloatArray
    nodes: IntArray


def distinct_rows(rows: FloatArray, history: History) -> DistinctRows:
    """Note the merges of equal rows (V, E); what is left."""
    points, lowest, owners, counts = np.unique(
        rows + 0.0, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    if len(points) == len(rows):
        return DistinctRows(rows, np.ones(len(rows)), np.arange(len(rows)))
    nodes = lowest.astype(np.int64)
    for code in np.flatnonzero(lowest[owners] != np.arange(len(rows))):
        point = owners[code]
        nodes[point] = history.note(nodes[[point]], np.array([code]), np.zeros(1))[0]
    by_code = np.argsort(lowest)
    return DistinctRows(points[by_code], counts[by_code].astype(np.float64), nodes[by_code])
