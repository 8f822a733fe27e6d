"""Certified candidate lists on a device: see `masc_core.tree.upgma.candidates` and ``rounds``.

A list is a row of ``ids`` and ``distances``, sorted, with infinite distances behind its entries.

Legend: n clusters, k entries a list, R rows, p merges.
"""

from __future__ import annotations

import torch
from torch import Tensor

from masc_core.tree.upgma.candidates import BUDGET, WANTED
from masc_core.tree.upgma.clusters import ROUNDING
from masc_core.tree.upgma.torch_clusters import TorchClusters

CHUNK_PAIRS = 1 << 25  # distances that are held at a time


class TorchCandidates:
    """The lists of all clusters, empty at first.

    Parameters
    ----------
    clusters : changed by `merge`
    width : k

    Attributes
    ----------
    ids, distances : int64 and float64 (n, k)
    lower_bound : float64 (n,), no cluster outside the list is nearer
    """

    def __init__(self, clusters: TorchClusters, width: int) -> None:
        self._clusters = clusters
        shape = (clusters.count, width)
        self.ids = clusters.owners.new_zeros(shape)
        self.distances = clusters.sizes.new_full(shape, torch.inf)
        self.lower_bound = clusters.sizes.new_zeros(clusters.count)

    def reciprocal(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs of clusters that are each other's nearest, (p,) lower and higher, and distances."""
        nearest = self.ids[:, 0]
        own = torch.arange(len(nearest), device=nearest.device)
        into = own[(nearest[nearest] == own) & (own < nearest)]
        if not len(into):  # rounding hides a tie from one side: the least of all is a true minimum
            least = self.distances[:, 0].argmin()
            pair = torch.stack([least, nearest[least]]).sort().values
            return pair[:1], pair[1:], self.distances[least, :1]
        return into, nearest[into], self.distances[into, 0]

    def fill_empty(self) -> None:
        """Fill every empty list: from the nearest centroids or, if these tell too little, all."""
        step = max(1, CHUNK_PAIRS // self._clusters.count)
        empty = self._empty()
        for start in range(0, len(empty), step):
            self._fill_from_centroids(empty[start : start + step])
        empty = self._empty()
        step = max(1, step // 8)
        for start in range(0, len(empty), step):
            self._fill_from_members(empty[start : start + step])

    def merge(self, into: Tensor, dropped: Tensor) -> None:
        """Merge pairs of clusters (p,), of which the nodes are the new ones already."""
        clusters = self._clusters
        partner = torch.full_like(clusters.nodes, -1)
        partner[into], partner[dropped] = dropped, into
        clusters.arrange(partner)
        ids, distances, lower_bound = self._refreshed(partner)
        joint = self._united(into, dropped, partner, ids, distances, lower_bound)
        ids[into], distances[into], lower_bound[into] = joint
        kept = torch.ones_like(partner, dtype=torch.bool)
        kept[dropped] = False
        place = clusters.merge(into, dropped)
        self.ids, self.distances, self.lower_bound = (
            place[ids[kept]],
            distances[kept],
            lower_bound[kept],
        )

    def _empty(self) -> Tensor:
        return (~self.distances[:, 0].isfinite()).nonzero()[:, 0]

    def _store(self, rows: Tensor, ids: Tensor, distances: Tensor, lower_bound: Tensor) -> None:
        listed = self._sorted(rows, ids, distances, lower_bound)
        self.ids[rows], self.distances[rows], self.lower_bound[rows] = listed

    def _sorted(
        self, rows: Tensor, ids: Tensor, distances: Tensor, lower_bound: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The nearest k of some entries (R, m), and the lower bound of the rest.

        Equal distances are in the order of a hash of the pair, the same from both ends.
        """
        nodes = self._clusters.nodes
        order = _tie(nodes[rows][:, None], nodes[ids]).argsort(1)
        order = order.gather(1, distances.gather(1, order).argsort(dim=1, stable=True))
        ids, distances = ids.gather(1, order), distances.gather(1, order)
        width = self.ids.shape[1]
        if ids.shape[1] > width:
            lower_bound = torch.minimum(lower_bound, distances[:, width])
            ids, distances = ids[:, :width], distances[:, :width]
        elif ids.shape[1] < width:
            more = width - ids.shape[1]
            ids = torch.nn.functional.pad(ids, (0, more))
            distances = torch.nn.functional.pad(distances, (0, more), value=torch.inf)
        return ids, distances.masked_fill(distances > lower_bound[:, None], torch.inf), lower_bound

    def _fill_from_centroids(self, rows: Tensor) -> None:
        clusters = self._clusters
        centroids = clusters.centroids - clusters.centroids.mean(0)  # lose fewer digits
        norms = centroids.square().sum(1)
        both = norms[rows][:, None] + norms
        margin = 4 * (centroids.shape[1] + 8) * torch.finfo(torch.float64).eps
        squares = both * (1 - margin) - 2 * (centroids[rows] @ centroids.T)  # (R, n)
        squares.scatter_(1, rows[:, None], torch.inf)
        wanted = min(WANTED, clusters.count)
        least, ids = squares.topk(wanted, largest=False)
        found = least.isfinite()
        outside = least[:, -1].clamp(min=0).sqrt()  # infinite where all others were found
        raw = clusters.centroids[rows].square().sum(1).sqrt() + norms[rows].sqrt()
        outside -= ROUNDING * (2 * raw + outside).nan_to_num(posinf=0.0)
        distances = torch.full_like(least, torch.inf)
        own = rows[:, None].expand_as(ids)[found]
        distances[found] = clusters.mean_distances(own, ids[found])
        self._store(rows, ids, distances, outside)

    def _fill_from_members(self, rows: Tensor) -> None:
        clusters = self._clusters
        counts = clusters.counts[rows]
        which = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
        within = torch.arange(len(which), device=rows.device) - (counts.cumsum(0) - counts)[which]
        members = clusters.starts[rows][which] + within
        means = clusters.sizes.new_zeros(len(rows), clusters.count)  # (R, n)
        step = max(1, CHUNK_PAIRS // len(clusters.points))
        for start in range(0, len(members), step):
            part = members[start : start + step]
            sums = clusters.sums_by_cluster(part) * clusters.weights[part]
            owners, parts = torch.unique_consecutive(
                which[start : start + step], return_counts=True
            )
            means[owners] += torch.segment_reduce(sums.T.contiguous(), "sum", lengths=parts)
        means /= clusters.sizes[rows][:, None] * clusters.sizes
        means.scatter_(1, rows[:, None], torch.inf)
        wanted = min(self.ids.shape[1] + 1, clusters.count)
        distances, ids = means.topk(wanted, largest=False)
        self._store(rows, ids, distances, torch.full_like(clusters.sizes[rows], torch.inf))

    def _refreshed(self, partner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The lists before the round, in terms of the clusters after it (their lower halves)."""
        sizes = self._clusters.sizes
        own = torch.arange(len(partner), device=partner.device)[:, None]
        ids, distances, lower_bound = self.ids, self.distances, self.lower_bound.clone()
        other = partner[ids]
        lower = torch.where(other >= 0, torch.minimum(ids, other), ids)
        listed = distances.isfinite() & (other != own)
        # Both halves in one list: the second of two neighbours in the order of new numbers.
        key = torch.where(listed, lower, -1 - torch.arange(ids.shape[1], device=ids.device))
        key, order = key.sort(dim=1, stable=True)
        ids, other, distances = (t.gather(1, order) for t in (ids, other, distances))
        listed = key >= 0
        duplicate = torch.zeros_like(listed)
        duplicate[:, 1:] = (key[:, 1:] == key[:, :-1]) & listed[:, 1:]
        leads = torch.zeros_like(listed)
        leads[:, :-1] = duplicate[:, 1:]
        rest = torch.full_like(distances, torch.nan)
        rest[:, :-1] = torch.where(leads[:, :-1], distances[:, 1:], torch.nan)
        one_sided = listed & (other >= 0) & ~duplicate & ~leads
        too_costly = one_sided & (self._costs(own, other.clamp(min=0)) > BUDGET)
        there, total = sizes[ids], sizes[ids] + sizes[other.clamp(min=0)]
        lowered = (there * distances + (total - there) * lower_bound[:, None]) / total
        lower_bound = torch.minimum(lower_bound, lowered.where(too_costly, torch.inf).amin(1))
        rows, columns = (one_sided & ~too_costly).nonzero(as_tuple=True)
        rest[rows, columns] = self._clusters.mean_distances(rows, other[rows, columns])
        mean = (there * distances + (total - there) * rest) / total
        distances = torch.where(leads | (one_sided & ~too_costly), mean, distances)
        distances = distances.masked_fill(~listed | duplicate | too_costly, torch.inf)
        return self._sorted(own[:, 0], key.clamp(min=0), distances, lower_bound)

    def _costs(self, first: Tensor, second: Tensor) -> Tensor:
        """Pairs of points that the distance of two clusters takes."""
        return self._clusters.counts[first] * self._clusters.counts[second]

    def _united(
        self,
        into: Tensor,
        dropped: Tensor,
        partner: Tensor,
        ids: Tensor,
        distances: Tensor,
        lower_bound: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The lists of the clusters that the round makes, from those of their halves."""
        clusters = self._clusters
        width = ids.shape[1]
        share = clusters.sizes[dropped] / (clusters.sizes[into] + clusters.sizes[dropped])
        limits = torch.stack([lower_bound[into], lower_bound[dropped]], 1)  # (p, 2)
        shares = torch.stack([1 - share, share], 1)
        limit = (shares * limits).sum(1)
        joined = torch.cat([ids[into], ids[dropped]], 1)
        known = torch.cat([distances[into], distances[dropped]], 1)
        side = torch.arange(2, device=ids.device).repeat_interleave(width).expand_as(joined)
        key = torch.where(known.isfinite(), joined, -1 - torch.arange(2 * width, device=ids.device))
        key, order = key.sort(dim=1, stable=True)
        known, side = known.gather(1, order), side.gather(1, order)
        listed = key >= 0
        duplicate = torch.zeros_like(listed)
        duplicate[:, 1:] = (key[:, 1:] == key[:, :-1]) & listed[:, 1:]
        leads = torch.zeros_like(listed)
        leads[:, :-1] = duplicate[:, 1:]
        rest = torch.full_like(known, torch.nan)
        rest[:, :-1] = torch.where(leads[:, :-1], known[:, 1:], torch.nan)
        # The half that does not know this neighbour, and how many points that one has.
        halves = torch.stack([into, dropped], 1)
        half = halves.gather(1, 1 - side)
        there = key.clamp(min=0)
        partners = partner[there]
        points = clusters.counts[there] + torch.where(
            partners >= 0, clusters.counts[partners.clamp(min=0)], 0
        )
        one_sided = listed & ~duplicate & ~leads
        too_costly = one_sided & (clusters.counts[half] * points > BUDGET)
        weight = shares.gather(1, side)
        lowered = weight * known + (1 - weight) * limits.gather(1, 1 - side)
        limit = torch.minimum(limit, lowered.where(too_costly, torch.inf).amin(1))
        rows, columns = (one_sided & ~too_costly).nonzero(as_tuple=True)
        rest[rows, columns] = clusters.mean_distances(
            half[rows, columns], there[rows, columns], points[rows, columns]
        )
        mean = weight * known + (1 - weight) * rest
        mean = mean.masked_fill(~listed | duplicate | too_costly, torch.inf)
        return self._sorted(into, there, mean, limit)


def _tie(first: Tensor, second: Tensor) -> Tensor:
    """Hash of pairs of nodes, in either order (the finaliser of SplitMix64)."""
    x = torch.maximum(first, second) * -0x61C8864680B583EB + torch.minimum(first, second)
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
