"""Sums of distances between two clusters, over their members, in float64.

``S(A, B) = sum of w_p w_q ||x_p - x_q|| over p in A, q in B``, so that ``D(A, B) = S / (|A| |B|)``.

Legend: N points, E dimensions, n slots.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from masc_core.kernel import inline, reduction
from masc_core.tree.upgma.types import FloatArray, IntArray, Slot


class Members(NamedTuple):
    """Who belongs to which cluster, for compiled loops.

    Attributes
    ----------
    points, weights : float64 (N, E) and (N,)
    runs : int64 (N, 3), stretches of ``points``: start, stop, next run of the same cluster or -1
    heads : int64 (n,), first run of each cluster
    sizes : float64 (n,), total weight
    nodes : int64 (n,), node of the tree
    """

    points: FloatArray
    weights: FloatArray
    runs: IntArray
    heads: IntArray
    sizes: FloatArray
    nodes: IntArray


@reduction
def distance(points: FloatArray, p: Slot, q: Slot) -> float:
    """Euclidean distance of two rows of ``points`` (N, E)."""
    first, second = points[p], points[q]
    total = 0.0
    for e in range(len(first)):
        difference = first[e] - second[e]
        total += difference * difference
    root: float = np.sqrt(total)
    return root


@inline
def mean_distance(members: Members, i: Slot, j: Slot, limit: float) -> float:
    """D of two slots, or infinity as soon as it is known to exceed ``limit``."""
    scale = members.sizes[i] * members.sizes[j]
    total: float = pair_sum(members, i, j, limit * scale) / scale
    return total if total <= limit else np.inf


@inline
def pair_sum(members: Members, i: Slot, j: Slot, limit: float) -> float:
    """S of two slots, or a number above ``limit`` as soon as S is known to exceed it."""
    points, weights, runs = members.points, members.weights, members.runs
    total: float = 0.0
    a = members.heads[i]
    while a >= 0:
        for p in range(runs[a, 0], runs[a, 1]):
            row = 0.0
            b = members.heads[j]
            while b >= 0:
                for q in range(runs[b, 0], runs[b, 1]):
                    row += weights[q] * distance(points, p, q)
                b = runs[b, 2]
            total += weights[p] * row
            if total > limit:
                return total
        a = runs[a, 2]
    return total
