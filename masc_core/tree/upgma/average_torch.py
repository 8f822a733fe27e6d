"""Exact average linkage on a GPU: the algorithm of `masc_core.tree.upgma.average`, in torch.

Everything but the final chain happens on the device, in float64. Distances come from matrix
products; where a product cancels they are taken anew from differences. Sums over clusters are sums
over consecutive rows, in a fixed order, so that the result does not change from run to run.

Legend: V codes, N distinct points, E dimensions, n clusters, k entries a list.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from masc_core.device import resolve_device
from masc_core.tree.upgma.average import WIDTH, usual_dense
from masc_core.tree.upgma.dense import chain
from masc_core.tree.upgma.history import History, distinct_rows
from masc_core.tree.upgma.torch_candidates import TorchCandidates
from masc_core.tree.upgma.torch_clusters import TorchClusters
from masc_core.tree.upgma.types import FloatArray, Report

CHUNK_PAIRS = 1 << 25  # distances that are held at a time


def average_linkage_torch(
    rows: FloatArray, device: str, report: Report, num_dense: int | None = None
) -> FloatArray:
    """The full tree.

    Parameters
    ----------
    rows : float64 (V, E), finite
    device : ``"cuda"``, ``"cuda:1"``, ...; ``"cpu"`` is for tests
    report : called with work done, work in all, and what is being done
    num_dense : clusters left to the matrix of distances; by default as many as on the CPU

    Returns
    -------
    float64 (V-1, 4), SciPy's convention

    Raises
    ------
    ConfigError : this machine has no such device
    """
    on = resolve_device(device)
    history = History(len(rows))
    distinct = distinct_rows(rows, history)
    clusters = TorchClusters(distinct, on)
    if num_dense is None:
        num_dense = usual_dense(*rows.shape)
    if clusters.count > num_dense:
        _merge_sparse(clusters, history, num_dense, report)
    if clusters.count > 1:
        _merge_dense(clusters, history, report)
    return history.linkage()


def _merge_sparse(clusters: TorchClusters, history: History, num_left: int, report: Report) -> None:
    candidates = TorchCandidates(clusters, WIDTH)
    while clusters.count > num_left:
        candidates.fill_empty()
        into, dropped, heights = candidates.reciprocal()
        excess = clusters.count - num_left
        into, dropped, heights = into[:excess], dropped[:excess], heights[:excess]
        merged = _array(clusters.nodes[into]), _array(clusters.nodes[dropped])
        nodes = history.note(*merged, _array(heights))
        clusters.nodes[into] = torch.from_numpy(nodes).to(into.device)
        report(history.num_merges, history.num_codes - 1, "neighbours")
        candidates.merge(into, dropped)


def _merge_dense(clusters: TorchClusters, history: History, report: Report) -> None:
    matrix = _mean_distances(clusters, report)
    nodes, sizes = _array(clusters.nodes), _array(clusters.sizes)
    for i, j, height in zip(*chain(_array(matrix), sizes), strict=True):
        nodes[i] = history.note(nodes[[i]], nodes[[j]], np.array([height]))[0]


def _mean_distances(clusters: TorchClusters, report: Report) -> Tensor:
    """Average distances of all clusters, float64 (n, n), infinite on the diagonal."""
    count, num_points = clusters.count, len(clusters.points)
    matrix = clusters.points.new_zeros(count, count)
    step = max(1, CHUNK_PAIRS // num_points)
    for first in range(0, num_points, step):
        part = torch.arange(first, min(first + step, num_points), device=matrix.device)
        sums = clusters.sums_by_cluster(part)  # (n, R)
        owners, counts = torch.unique_consecutive(clusters.owners[part], return_counts=True)
        weighted = (sums * clusters.weights[part]).T.contiguous()
        matrix[owners] += torch.segment_reduce(weighted, "sum", lengths=counts)
        report(int(part[-1]) + 1, num_points, "distances")
    matrix /= clusters.sizes[:, None] * clusters.sizes
    matrix = (matrix + matrix.T) / 2  # the two halves differ by rounding
    return matrix.fill_diagonal_(torch.inf)


def _array(tensor: Tensor) -> Any:  # noqa: ANN401 - of the tensor's type
    return tensor.cpu().numpy()
