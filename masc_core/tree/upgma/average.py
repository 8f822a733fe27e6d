"""Exact average linkage (UPGMA) in memory that grows with the number of points, not of pairs.

Reciprocal nearest neighbours, all of them in a round, are merged: average linkage is reducible, so
no merge brings any two clusters nearer to each other than the nearest of their parts were, and the
tree is the one that merging the closest pair over and over gives (Bruynooghe, 1978). Nearest
neighbours come from certified candidate lists (`candidates`). When few clusters are left, the rest
is done on the matrix of their distances (`dense`).

Legend: V codes, E dimensions, n clusters.
"""

from __future__ import annotations

from math import isqrt

import numpy as np

from masc_core.tree.upgma.candidates import Candidates, Searcher
from masc_core.tree.upgma.clusters import Clusters, spatial_order
from masc_core.tree.upgma.dense import chain, mean_distances
from masc_core.tree.upgma.distances import LANES
from masc_core.tree.upgma.history import DistinctRows, History, distinct_rows
from masc_core.tree.upgma.hubs import Hubs
from masc_core.tree.upgma.types import FloatArray, IntArray, Report

WIDTH = 16  # entries of a candidate list
COMPACT_BELOW = 0.8  # share of slots alive


def average_linkage(rows: FloatArray, report: Report, num_dense: int | None = None) -> FloatArray:
    """The full tree.

    Parameters
    ----------
    rows : float64 (V, E), finite
    report : called with merges done, merges in all, and what is being done
    num_dense : clusters left to the matrix of distances; by default `usual_dense`

    Returns
    -------
    float64 (V-1, 4), SciPy's convention
    """
    history = History(len(rows))
    clusters = _singletons(distinct_rows(rows, history))
    if num_dense is None:
        num_dense = usual_dense(*rows.shape)
    if clusters.count > num_dense:
        _merge_sparse(clusters, history, num_dense, report)
    if clusters.count > 1:
        _merge_dense(clusters, history, report)
    return history.linkage()


def usual_dense(num_codes: int, dimensions: int) -> int:
    """Clusters whose matrix takes 2 KB a code, or up to 6 where neighbours are hard to find."""
    entries = min(max(256, 32 * dimensions), 768)
    return max(2048, isqrt(entries * num_codes))


def _singletons(distinct: DistinctRows) -> Clusters:
    """Every distinct row a cluster, its dimensions filled up with zeros."""
    missing = -distinct.points.shape[1] % LANES
    points = np.pad(distinct.points, ((0, 0), (0, missing))) if missing else distinct.points
    return Clusters.singletons(points, distinct.weights, distinct.nodes, spatial_order(points))


def _merge_sparse(clusters: Clusters, history: History, num_left: int, report: Report) -> None:
    candidates = Candidates(len(clusters.alive), WIDTH)
    hubs = Hubs(clusters)
    searcher = Searcher(clusters, candidates, hubs)
    while True:
        searcher.fill_empty()
        into, dropped, heights = _reciprocal(clusters, candidates, hubs)
        excess = clusters.count - num_left
        into, dropped, heights = into[:excess], dropped[:excess], heights[:excess]
        nodes = history.note(clusters.nodes[into], clusters.nodes[dropped], heights)
        clusters.nodes[into] = nodes
        report(history.num_merges, history.num_codes - 1, "neighbours")
        if clusters.count - len(into) == num_left:
            clusters.merge(into, dropped)
            clusters.compact()
            return
        hubs.merge(into, dropped)
        taken = clusters.hubs[into] | clusters.hubs[dropped]
        candidates.drop(np.concatenate([into[taken], dropped[taken]]))
        candidates.merge(clusters, into[~taken], dropped[~taken])
        clusters.merge(into, dropped)
        if clusters.count < COMPACT_BELOW * len(clusters.alive):
            kept, place = clusters.compact()
            candidates.compact(kept, place)
            hubs.compact(kept, place)


def _reciprocal(
    clusters: Clusters, candidates: Candidates, hubs: Hubs
) -> tuple[IntArray, IntArray, FloatArray]:
    """Pairs of slots that are each other's nearest, (p,) lower and higher ones, and distances."""
    alive = np.flatnonzero(clusters.alive)
    nearest, distances = candidates.nearest()
    hubs.nearer(nearest, distances)
    into = alive[(nearest[nearest[alive]] == alive) & (alive < nearest[alive])]
    if len(into):
        return into, nearest[into], distances[into]
    # Rounding hides a tie from one side: the least distance of all is a true minimum.
    least = alive[[np.argmin(distances[alive])]]
    pair = np.sort([least, nearest[least]], axis=0)
    return pair[0], pair[1], distances[least]


def _merge_dense(clusters: Clusters, history: History, report: Report) -> None:
    num_points = len(clusters.points)
    matrix = mean_distances(clusters, lambda done: report(done, num_points, "distances"))
    nodes = clusters.nodes
    for i, j, height in zip(*chain(matrix, clusters.sizes.copy()), strict=True):
        nodes[i] = history.note(nodes[[i]], nodes[[j]], np.array([height]))[0]
