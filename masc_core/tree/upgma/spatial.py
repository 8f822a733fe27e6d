"""An order of points in which neighbours in space are neighbours in memory."""

from __future__ import annotations

import numpy as np

from masc_core.tree.upgma.types import FloatArray, IntArray

LEAF = 64


def spatial_order(points: FloatArray) -> IntArray:
    """Halve the points along their widest dimension until few are left, as a k-d tree does.

    Parameters
    ----------
    points : (N, E)

    Returns
    -------
    int64 (N,), a permutation; every aligned stretch of `LEAF` points is a leaf
    """
    order = np.arange(len(points))
    pending = [(0, len(points))]
    while pending:
        start, stop = pending.pop()
        if stop - start <= LEAF:
            continue
        part = order[start:stop]
        here = points[part]
        values = here[:, np.argmax(np.ptp(here, axis=0))]
        half = -(-(stop - start) // (2 * LEAF)) * LEAF
        order[start:stop] = part[np.argpartition(values, half - 1)]
        pending += [(start, start + half), (start + half, stop)]
    return order
