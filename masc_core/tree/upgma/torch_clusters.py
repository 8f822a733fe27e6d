"""The clusters of one moment on a device, and the distances between their members.

Everything is float64. Points are kept in the order of their clusters, so that a sum over a cluster
is one over consecutive rows, in a fixed order: the result does not change from run to run.
Distances come from matrix products; where a product cancels they are taken anew from differences.

Legend: N points, E dimensions, n clusters, P pairs of clusters, R rows.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from masc_core.arrays import FloatArray, IntArray
from masc_core.device import resolve_device
from masc_core.progress import ProgressCallback
from masc_core.tree.upgma.distances import CANCELLATION_SHARE
from masc_core.tree.upgma.history import DistinctRows

CHUNK_PAIRS = 1 << 24  # pairs of points that are held at a time
CHUNK_DISTANCES = 1 << 25  # distances that are held at a time


class TorchClusters:
    """Singletons at first.

    Parameters
    ----------
    device : ``"cuda"``, ``"cuda:1"``, ...; ``"cpu"`` is for tests

    Attributes
    ----------
    points, weights : float64 (N, E) and (N,)
    owners : int64 (N,), ascending
    starts, counts : int64 (n,), first point and number of points of each cluster
    sizes : float64 (n,), total weight
    centroids : float64 (n, E)
    nodes : int64 (n,), node of the tree
    """

    def __init__(self, distinct: DistinctRows, device: str) -> None:
        on = resolve_device(device)
        self.points, self.weights, self.nodes = (torch.from_numpy(a).to(on) for a in distinct)
        self.owners = torch.arange(len(self.points), device=on)
        self.starts, self.counts = self.owners.clone(), torch.ones_like(self.owners)
        self.sizes = self.weights.clone()
        self.centroids = self.points.clone()

    @property
    def count(self) -> int:
        """Number of clusters."""
        return len(self.sizes)

    def nodes_of(self, clusters: IntArray) -> IntArray:
        """Node of the tree of each of ``clusters`` (p,)."""
        return self.nodes.cpu().numpy()[clusters]

    def arrange(self, partner: Tensor) -> None:
        """Bring the halves of the coming merges next to each other.

        Parameters
        ----------
        partner : int64 (n,), what each merges with, or -1
        """
        own = torch.arange(self.count, device=partner.device)
        lower = torch.where(partner >= 0, torch.minimum(own, partner), own)
        key = 2 * lower + (lower != own)  # two halves have consecutive keys, the lower one first
        order = key[self.owners].argsort(stable=True)
        self.points, self.weights = self.points[order], self.weights[order]
        self.owners = self.owners[order]  # no longer ascending until `merge` renumbers
        order = key.argsort()
        self.starts[order] = self.counts[order].cumsum(0) - self.counts[order]

    def merge(self, into: Tensor, dropped: Tensor) -> Tensor:
        """Merge pairs (p,) that `arrange` made neighbours; the new number of each cluster (n,)."""
        total = self.sizes[into] + self.sizes[dropped]
        share = (self.sizes[dropped] / total)[:, None]
        self.centroids[into] += share * (self.centroids[dropped] - self.centroids[into])
        self.sizes[into] = total
        self.counts[into] += self.counts[dropped]
        kept = torch.ones(self.count, dtype=torch.bool, device=into.device)
        kept[dropped] = False
        number = kept.cumsum(0) - 1
        number[dropped] = number[into]
        self.owners = number[self.owners]
        self.counts, self.sizes = self.counts[kept], self.sizes[kept]
        self.starts = self.counts.cumsum(0) - self.counts
        self.centroids, self.nodes = self.centroids[kept], self.nodes[kept]
        return number

    def mean_distances(self, first: Tensor, second: Tensor, counts: Tensor | None = None) -> Tensor:
        """Average distances of pairs of clusters, float64 (P,).

        Parameters
        ----------
        first, second : int64 (P,)
        counts : int64 (P,), points of ``second`` where these are not its own: with those of its
            partner, which lie behind them
        """
        rows, columns = self.counts[first], self.counts[second] if counts is None else counts
        return torch.cat(
            [
                self._means(first[part], second[part], rows[part], columns[part])
                for part in _chunks(rows * columns)
            ]
            or [self.sizes.new_zeros(0)]
        )

    def _means(self, first: Tensor, second: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        pairs = rows * columns
        # One entry for every pair of points: which pair of clusters, and which of its pairs.
        which = torch.arange(len(pairs), device=pairs.device).repeat_interleave(pairs)
        within = torch.arange(len(which), device=pairs.device)
        within -= (pairs.cumsum(0) - pairs)[which]
        p = self.starts[first][which] + within // columns[which]
        q = self.starts[second][which] + within % columns[which]
        weights = self.weights[p] * self.weights[q]
        distances = torch.linalg.vector_norm(self.points[p] - self.points[q], dim=1)
        totals = torch.segment_reduce(
            torch.stack([weights * distances, weights], 1), "sum", lengths=pairs
        )
        return totals[:, 0] / totals[:, 1]

    def distance_matrix(self, report: ProgressCallback) -> tuple[FloatArray, FloatArray, IntArray]:
        """Average distances of all clusters, (n, n), infinite on the diagonal; sizes and nodes."""
        count, num_points = self.count, len(self.points)
        matrix = self.points.new_zeros(count, count)
        step = max(1, CHUNK_DISTANCES // num_points)
        for first in range(0, num_points, step):
            part = torch.arange(first, min(first + step, num_points), device=matrix.device)
            sums = self.sums_by_cluster(part)  # (n, R)
            owners, counts = torch.unique_consecutive(self.owners[part], return_counts=True)
            weighted = (sums * self.weights[part]).T.contiguous()
            matrix[owners] += torch.segment_reduce(weighted, "sum", lengths=counts)
            report(int(part[-1]) + 1, num_points, "distances")
        matrix /= self.sizes[:, None] * self.sizes
        matrix = (matrix + matrix.T) / 2  # the two halves differ by rounding
        matrix.fill_diagonal_(torch.inf)
        return matrix.cpu().numpy(), self.sizes.cpu().numpy(), self.nodes.cpu().numpy()

    def sums_by_cluster(self, part: Tensor) -> Tensor:
        """Weighted distances of the points ``part`` (R,) to all, summed by cluster, (n, R)."""
        centre = self.points[part].mean(0)  # near points lose fewer digits around their own
        points = self.points - centre
        norms = points.square().sum(1)
        both = norms[:, None] + norms[part]
        squares = both - 2 * (points @ points[part].T)  # (N, R)
        cancelled = (squares < CANCELLATION_SHARE * both).nonzero()
        for pairs in torch.split(cancelled, CHUNK_PAIRS):
            q, r = pairs.unbind(1)
            squares[q, r] = (self.points[q] - self.points[part[r]]).square().sum(1)
        distances = squares.sqrt_().mul_(self.weights[:, None])
        return torch.segment_reduce(distances, "sum", lengths=self.counts)


def _chunks(sizes: Tensor) -> list[slice]:
    """Stretches of ``sizes`` that add up to about `CHUNK_PAIRS` each."""
    if not len(sizes):
        return []
    ends = sizes.cumsum(0)
    steps = torch.arange(1, int(ends[-1]) // CHUNK_PAIRS + 1, device=ends.device) * CHUNK_PAIRS
    cuts = torch.unique(torch.searchsorted(ends, steps) + 1).tolist()
    bounds = [0, *(c for c in cuts if c < len(sizes)), len(sizes)]
    return [slice(a, b) for a, b in pairwise(bounds)]
