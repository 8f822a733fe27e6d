"""Exact average linkage (UPGMA) in memory that grows with the number of points, not of pairs.

Reciprocal nearest neighbours, all of them in a round, are merged: average linkage is reducible, so
no merge brings any two clusters nearer to each other than the nearest of their parts were, and the
tree is the one that merging the closest pair over and over gives (Bruynooghe, 1978). Nearest
neighbours come from certified candidate lists (`candidates`; on a GPU `torch_candidates`). When few
clusters are left, the rest, which in small codebooks is everything, is done on the matrix of their
distances (`dense`).

Legend: V codes, E dimensions.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

import numpy as np

from masc_core.arrays import FloatArray
from masc_core.progress import ProgressCallback
from masc_core.tree.upgma.candidates import Candidates
from masc_core.tree.upgma.clusters import Clusters
from masc_core.tree.upgma.dense import chain
from masc_core.tree.upgma.history import History, distinct_rows

if TYPE_CHECKING:
    from masc_core.tree.upgma.torch_candidates import TorchCandidates
    from masc_core.tree.upgma.torch_clusters import TorchClusters

LIST_LENGTH = 16  # candidates of a cluster


def average_linkage(
    rows: FloatArray,
    report: ProgressCallback,
    torch_device: str | None = None,
    num_dense: int | None = None,
) -> FloatArray:
    """The full tree.

    Parameters
    ----------
    rows : float64 (V, E), finite
    report : called with merges done, merges in all, and what is being done
    torch_device : ``"cuda"``, ``"cuda:1"``, ...; None is the processor, without torch
    num_dense : clusters left to the matrix of distances; by default `usual_dense`

    Returns
    -------
    float64 (V-1, 4), SciPy's convention

    Raises
    ------
    ConfigError : this machine has no such device
    """
    history = History(len(rows))
    distinct = distinct_rows(rows, history)  # notes the first merges: equal rows, at height 0
    clusters: Clusters | TorchClusters
    candidates: Candidates | TorchCandidates
    if torch_device is None:
        clusters = Clusters.singletons(distinct)
        candidates = Candidates(clusters, LIST_LENGTH)
    else:
        from masc_core.tree.upgma.torch_candidates import TorchCandidates  # noqa: PLC0415
        from masc_core.tree.upgma.torch_clusters import TorchClusters  # noqa: PLC0415

        clusters = TorchClusters(distinct, torch_device)
        candidates = TorchCandidates(clusters, LIST_LENGTH)
    num_left = usual_dense(*rows.shape) if num_dense is None else num_dense
    while clusters.count > num_left:
        candidates.fill_empty()
        into, dropped, heights = candidates.reciprocal_neighbours()
        merges_left = clusters.count - num_left
        into, dropped, heights = into[:merges_left], dropped[:merges_left], heights[:merges_left]
        nodes = history.append(clusters.nodes_of(into), clusters.nodes_of(dropped), heights)
        candidates.merge(into, dropped, nodes)
        report(history.num_merges, len(rows) - 1, "neighbours")
    if clusters.count > 1:
        matrix, sizes, nodes = clusters.distance_matrix(report)
        for i, j, height in zip(*chain(matrix, sizes), strict=True):
            nodes[i] = history.append(nodes[[i]], nodes[[j]], np.array([height]))[0]
    return history.linkage()


def usual_dense(num_codes: int, dimensions: int) -> int:
    """Clusters whose matrix takes 2 KB a code, or up to 6 where neighbours are hard to find."""
    entries = min(max(256, 32 * dimensions), 768)
    return max(2048, isqrt(entries * num_codes))
