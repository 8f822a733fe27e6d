"""The clusters of one moment on a device, and the distances between their members.

Points are kept in the order of their clusters, so that a sum over a cluster is one over consecutive
rows. During a round the two halves of every new cluster are neighbours in that order.

Legend: N points, E dimensions, n clusters, P pairs of clusters.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from masc_core.tree.upgma.distances import CANCELLED
from masc_core.tree.upgma.history import DistinctRows

CHUNK_PAIRS = 1 << 24  # pairs of points that are held at a time


class TorchClusters:
    """Singletons at first.

    Attributes
    ----------
    points, weights : float64 (N, E) and (N,)
    owners : int64 (N,), ascending
    starts, counts : int64 (n,), first point and number of points of each cluster
    sizes : float64 (n,), total weight
    centroids : float64 (n, E)
    nodes : int64 (n,), node of the tree
    """

    def __init__(self, distinct: DistinctRows, device: torch.device) -> None:
        self.points = torch.from_numpy(distinct.points).to(device)
        self.weights = torch.from_numpy(distinct.weights).to(device)
        self.nodes = torch.from_numpy(distinct.nodes).to(device)
        self.owners = torch.arange(len(self.points), device=device)
        self.starts, self.counts = self.owners.clone(), torch.ones_like(self.owners)
        self.sizes = self.weights.clone()
        self.centroids = self.points.clone()

    @property
    def count(self) -> int:
        """Number of clusters."""
        return len(self.sizes)

    def arrange(self, partner: Tensor) -> None:
        """Bring the halves of the coming merges next to each other.

        Parameters
        ----------
        partner : int64 (n,), what each merges with, or -1
        """
        own = torch.arange(self.count, device=partner.device)
        lower = torch.where(partner >= 0, torch.minimum(own, partner), own)
        key = 2 * lower + (lower != own)
        order = key[self.owners].argsort(stable=True)
        self.points, self.weights = self.points[order], self.weights[order]
        self.owners = self.owners[order]
        place = key.argsort()
        self.starts[place] = self.counts[place].cumsum(0) - self.counts[place]

    def merge(self, into: Tensor, dropped: Tensor) -> Tensor:
        """Merge pairs (p,) that `arrange` made neighbours; the new number of each cluster (n,)."""
        total = self.sizes[into] + self.sizes[dropped]
        share = (self.sizes[dropped] / total)[:, None]
        self.centroids[into] += share * (self.centroids[dropped] - self.centroids[into])
        self.sizes[into] = total
        self.counts[into] += self.counts[dropped]
        kept = torch.ones(self.count, dtype=torch.bool, device=into.device)
        kept[dropped] = False
        place = kept.cumsum(0) - 1
        place[dropped] = place[into]
        self.owners = place[self.owners]
        self.counts, self.sizes = self.counts[kept], self.sizes[kept]
        self.starts = self.counts.cumsum(0) - self.counts
        self.centroids, self.nodes = self.centroids[kept], self.nodes[kept]
        return place

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
                self._sums(first[part], second[part], rows[part], columns[part])
                for part in _parts(rows * columns)
            ]
            or [self.sizes.new_zeros(0)]
        )

    def _sums(self, first: Tensor, second: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        pairs = rows * columns
        which = torch.arange(len(pairs), device=pairs.device).repeat_interleave(pairs)
        within = torch.arange(len(which), device=pairs.device)
        within -= (pairs.cumsum(0) - pairs)[which]
        p = self.starts[first][which] + within // columns[which]
        q = self.starts[second][which] + within % columns[which]
        weights = self.weights[p] * self.weights[q]
        far = torch.linalg.vector_norm(self.points[p] - self.points[q], dim=1)
        totals = torch.segment_reduce(
            torch.stack([weights * far, weights], 1), "sum", lengths=pairs
        )
        return totals[:, 0] / totals[:, 1]

    def sums_by_cluster(self, part: Tensor) -> Tensor:
        """Weighted distances of the points ``part`` (R,) to all, summed by cluster, (n, R)."""
        centre = self.points[part].mean(0)
        points = self.points - centre
        norms = points.square().sum(1)
        both = norms[:, None] + norms[part]
        squares = both - 2 * (points @ points[part].T)  # (N, R)
        cancelled = (squares < CANCELLED * both).nonzero()
        for pairs in torch.split(cancelled, CHUNK_PAIRS):
            q, r = pairs.unbind(1)
            squares[q, r] = (self.points[q] - self.points[part[r]]).square().sum(1)
        far = squares.sqrt_().mul_(self.weights[:, None])
        return torch.segment_reduce(far, "sum", lengths=self.counts)


def _parts(sizes: Tensor) -> list[slice]:
    """Stretches of ``sizes`` that add up to about `CHUNK_PAIRS` each."""
    if not len(sizes):
        return []
    ends = sizes.cumsum(0)
    steps = torch.arange(1, int(ends[-1]) // CHUNK_PAIRS + 1, device=ends.device) * CHUNK_PAIRS
    cuts = torch.unique(torch.searchsorted(ends, steps) + 1).tolist()
    bounds = [0, *(c for c in cuts if c < len(sizes)), len(sizes)]
    return [slice(a, b) for a, b in pairwise(bounds)]
