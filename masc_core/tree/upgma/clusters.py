"""The clusters of one moment: who their members are, and where their centroids lie.

Clusters live in slots. Merging keeps the lower slot and leaves the other one dead; `compact` closes
the gaps and brings the members of each cluster next to each other again.

Legend: N points, E dimensions (padded), n slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from masc_core.arrays import BoolArray, FloatArray, IdArray, IntArray
from masc_core.numba_jit import njit_serial
from masc_core.progress import ProgressCallback
from masc_core.tree.upgma.dense import distance_matrix
from masc_core.tree.upgma.distances import LANES, Members, Products
from masc_core.tree.upgma.history import DistinctRows

ROUNDING = float(64 * np.finfo(np.float64).eps)  # relative error of a mean, a square and a root
LEAF = 64  # points of a leaf of the spatial order


@dataclass(slots=True)
class Clusters:
    """Clusters in slots.

    Attributes
    ----------
    points : float64 (N, E), in an order that changes
    weights : float64 (N,), how often each point occurs
    runs : int64 (N, 3), stretches of ``points``: start, stop, next run of the same cluster or -1
    heads, tails : int64 (n,), first and last run of each cluster
    sizes : float64 (n,), total weight; 0 in a dead slot
    centroids : float64 (n, E)
    norms : float64 (n,), mean Euclidean norm of the members
    nodes : int64 (n,), node of the tree
    alive : bool (n,)
    has_row : bool (n,), alive, but in no list (`masc_core.tree.upgma.distance_rows`)
    """

    points: FloatArray
    weights: FloatArray
    runs: IntArray
    heads: IntArray
    tails: IntArray
    sizes: FloatArray
    centroids: FloatArray
    norms: FloatArray
    nodes: IntArray
    alive: BoolArray
    has_row: BoolArray
    _products: Products | None = None

    @classmethod
    def singletons(cls, distinct: DistinctRows) -> Clusters:
        """Every distinct row by itself, its dimensions filled up with zeros."""
        padding = -distinct.points.shape[1] % LANES
        points = np.pad(distinct.points, ((0, 0), (0, padding))) if padding else distinct.points
        order = spatial_order(points)
        points, weights = np.ascontiguousarray(points[order]), distinct.weights[order]
        slots = np.arange(len(points))
        runs = np.stack([slots, slots + 1, np.full(len(points), -1)], axis=1)
        return cls(
            points, weights, runs, slots.copy(), slots.copy(), weights.copy(), points.copy(),
            np.linalg.norm(points, axis=1), distinct.nodes[order], np.ones(len(points), bool),
            np.zeros(len(points), bool),
        )  # fmt: skip

    @property
    def count(self) -> int:
        """Clusters alive."""
        return int(np.count_nonzero(self.alive))

    @property
    def listed(self) -> BoolArray:
        """Slots that searches find, bool (n,)."""
        return self.alive & ~self.has_row

    def nodes_of(self, slots: IntArray) -> IntArray:
        """Node of the tree in each of ``slots`` (p,)."""
        return self.nodes[slots]

    def members(self) -> Members:
        """Who belongs to which cluster, for compiled loops."""
        return Members(self.points, self.weights, self.runs, self.heads, self.sizes, self.nodes)

    def owners(self) -> IntArray:
        """The slot of each point, int64 (N,)."""
        slots = np.flatnonzero(self.alive)
        points, counts = self.points_of(slots)
        owners = np.empty(len(self.points), np.int64)
        owners[points] = np.repeat(slots, counts)
        return owners

    def points_of(self, slots: IntArray) -> tuple[IntArray, IntArray]:
        """Points of some clusters, one after the other (M,), and how many each has."""
        order, stops = _gather(self.runs, self.heads[slots], len(self.points))
        return order[: stops[-1]], np.diff(stops, prepend=0)

    def products(self) -> Products:
        """Matrix products of the points, kept until their order changes."""
        if self._products is None:
            self._products = Products(self.points, np.float32)
        return self._products

    def rounding(self, slots: IntArray, distances: FloatArray) -> FloatArray:
        """What rounding may have added to distances of centroids from those of ``slots``.

        A centroid is off by some units in the last place of its members' mean norm, and that of a
        cluster elsewhere is at most the own one plus the distance.
        """
        return ROUNDING * (2 * self.norms[slots] + distances)

    def merge(self, into: IntArray, dropped: IntArray) -> None:
        """Add the clusters in the slots ``dropped`` to those in ``into``, pair by pair."""
        total = self.sizes[into] + self.sizes[dropped]
        share = self.sizes[dropped] / total
        self.norms[into] += share * (self.norms[dropped] - self.norms[into])
        self.centroids[into] += share[:, None] * (self.centroids[dropped] - self.centroids[into])
        self.sizes[into] = total
        self.runs[self.tails[into], 2] = self.heads[dropped]
        self.tails[into] = self.tails[dropped]
        self.alive[dropped] = False
        self.has_row[into] |= self.has_row[dropped]
        self.has_row[dropped] = False
        self.sizes[dropped] = 0.0

    def compact(self) -> tuple[IntArray, IdArray]:
        """Renumber the slots without gaps.

        Returns
        -------
        int64 (m,), the slots kept, and int32 (n,), the new number of each slot (-1: dead)
        """
        kept = np.flatnonzero(self.alive)
        number = np.full(len(self.alive), -1, np.int32)
        number[kept] = np.arange(len(kept), dtype=np.int32)
        order, stops = _gather(self.runs, self.heads[kept], len(self.points))
        self.points, self.weights = self.points[order], self.weights[order]
        self._products = None
        slots = np.arange(len(kept))
        starts = np.concatenate([np.zeros(1, np.int64), stops[:-1]])
        self.runs = np.stack([starts, stops, np.full(len(kept), -1)], axis=1)
        self.heads, self.tails = slots, slots.copy()
        self.sizes, self.centroids = self.sizes[kept], self.centroids[kept]
        self.norms, self.nodes = self.norms[kept], self.nodes[kept]
        self.alive, self.has_row = np.ones(len(kept), bool), self.has_row[kept]
        return kept, number

    def distance_matrix(self, report: ProgressCallback) -> tuple[FloatArray, FloatArray, IntArray]:
        """Average distances of all clusters, (n, n), infinite on the diagonal; sizes and nodes.

        Compacts the slots.
        """
        self.compact()
        return distance_matrix(self.members(), report), self.sizes, self.nodes


@njit_serial
def _gather(runs: IntArray, heads: IntArray, num_points: int) -> tuple[IntArray, IntArray]:
    """Points in the order of their clusters (N,), and where each cluster ends (n,)."""
    order = np.empty(num_points, np.int64)
    stops = np.empty(len(heads), np.int64)
    at = 0
    for i in range(len(heads)):
        run = heads[i]
        while run >= 0:
            for p in range(runs[run, 0], runs[run, 1]):
                order[at] = p
                at += 1
            run = runs[run, 2]
        stops[i] = at
    return order, stops


def spatial_order(points: FloatArray) -> IntArray:
    """An order in which neighbours in space are neighbours in memory.

    Points (N, E) are halved along their widest dimension until few are left, as in a k-d tree.

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
