"""Certified candidate lists on a device: see `candidates` and `candidate_lists`.

A list is a row of ``ids`` and ``distances``, sorted, with infinite distances behind its entries.

Legend: n clusters, k entries a list, R rows, m entries of a row, p merges.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from masc_core.arrays import FloatArray, IntArray
from masc_core.tree.upgma.candidates import MAX_PAIRS, NUM_CENTROIDS
from masc_core.tree.upgma.clusters import ROUNDING
from masc_core.tree.upgma.torch_clusters import CHUNK_DISTANCES, TorchClusters


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

    def reciprocal_neighbours(self) -> tuple[IntArray, IntArray, FloatArray]:
        """Pairs of clusters that are each other's nearest, (p,) lower and higher, and distances."""
        nearest = self.ids[:, 0]
        own = torch.arange(len(nearest), device=nearest.device)
        into = own[(nearest[nearest] == own) & (own < nearest)]
        if len(into):
            pairs = into, nearest[into], self.distances[into, 0]
        else:  # rounding hides a tie from one side: the least of all is a true minimum
            least = self.distances[:, 0].argmin()
            pair = torch.stack([least, nearest[least]]).sort().values
            pairs = pair[:1], pair[1:], self.distances[least, :1]
        low, high, distances = (tensor.cpu().numpy() for tensor in pairs)
        return low, high, distances

    def fill_empty(self) -> None:
        """Fill every empty list: from the nearest centroids or, if these are too few, all."""
        step = max(1, CHUNK_DISTANCES // self._clusters.count)
        empty = self._empty()
        for start in range(0, len(empty), step):
            self._fill_from_centroids(empty[start : start + step])
        empty = self._empty()
        step = max(1, step // 8)
        for start in range(0, len(empty), step):
            self._fill_from_members(empty[start : start + step])

    def merge(self, into: IntArray, dropped: IntArray, nodes: IntArray) -> None:
        """Merge clusters, (p,) each, into the lower ones, which become ``nodes`` of the tree."""
        clusters = self._clusters
        device = clusters.nodes.device
        low, high, made = (torch.from_numpy(a).to(device) for a in (into, dropped, nodes))
        clusters.nodes[low] = made
        partner = torch.full_like(clusters.nodes, -1)
        partner[low], partner[high] = high, low
        clusters.arrange(partner)
        ids, distances, lower_bound = self._updated(partner)
        merged = self._joined(low, high, partner, ids, distances, lower_bound)
        ids[low], distances[low], lower_bound[low] = merged
        kept = torch.ones_like(partner, dtype=torch.bool)
        kept[high] = False
        number = clusters.merge(low, high)
        self.ids, self.distances = number[ids[kept]], distances[kept]
        self.lower_bound = lower_bound[kept]

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
        norm_sums = norms[rows][:, None] + norms
        # Less what the product may be off by: rounding of the entries, of E products and their sum.
        margin = 4 * (centroids.shape[1] + 8) * torch.finfo(torch.float64).eps
        squares = norm_sums * (1 - margin) - 2 * (centroids[rows] @ centroids.T)  # (R, n)
        squares.scatter_(1, rows[:, None], torch.inf)
        least, ids = squares.topk(min(NUM_CENTROIDS, clusters.count), largest=False)
        lower_bound = least[:, -1].clamp(min=0).sqrt()  # infinite where all others were found
        # Less what rounding may have moved the centroids by (`Clusters.rounding`).
        raw = clusters.centroids[rows].square().sum(1).sqrt() + norms[rows].sqrt()
        lower_bound -= ROUNDING * (2 * raw + lower_bound).nan_to_num(posinf=0.0)
        others = least.isfinite()
        distances = torch.full_like(least, torch.inf)
        own = rows[:, None].expand_as(ids)[others]
        distances[others] = clusters.mean_distances(own, ids[others])
        self._store(rows, ids, distances, lower_bound)

    def _fill_from_members(self, rows: Tensor) -> None:
        clusters = self._clusters
        counts = clusters.counts[rows]
        # Every point of every row, and which row it belongs to.
        which = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
        within = torch.arange(len(which), device=rows.device) - (counts.cumsum(0) - counts)[which]
        members = clusters.starts[rows][which] + within
        means = clusters.sizes.new_zeros(len(rows), clusters.count)  # (R, n)
        step = max(1, CHUNK_DISTANCES // len(clusters.points))
        for start in range(0, len(members), step):
            part = members[start : start + step]
            sums = clusters.sums_by_cluster(part) * clusters.weights[part]
            owners, lengths = torch.unique_consecutive(
                which[start : start + step], return_counts=True
            )
            means[owners] += torch.segment_reduce(sums.T.contiguous(), "sum", lengths=lengths)
        means /= clusters.sizes[rows][:, None] * clusters.sizes
        means.scatter_(1, rows[:, None], torch.inf)
        distances, ids = means.topk(min(self.ids.shape[1] + 1, clusters.count), largest=False)
        self._store(rows, ids, distances, torch.full_like(clusters.sizes[rows], torch.inf))

    def _updated(self, partner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The lists before the round, in terms of the clusters after it (their lower halves).

        ``D(i, A u B) = (|A| D(i, A) + |B| D(i, B)) / (|A| + |B|)`` for every listed A.
        """
        sizes, counts = self._clusters.sizes, self._clusters.counts
        own = torch.arange(len(partner), device=partner.device)[:, None]
        other = partner[self.ids]  # B, or -1 where A does not merge
        lower = torch.where(other >= 0, torch.minimum(self.ids, other), self.ids)
        # What merges with the list's own cluster leaves the list.
        entries = _pair_entries(lower, self.distances.isfinite() & (other != own))
        ids, other, distances = (
            tensor.gather(1, entries.order) for tensor in (self.ids, other, self.distances)
        )
        # D(i, B): that of the next entry where both halves are listed; summed where only A is and
        # that is not too costly; else no more than the lower bound is known of it.
        rest = entries.distance_of_duplicate(distances)
        one_sided = entries.listed & (other >= 0) & ~entries.duplicate & ~entries.first_of_pair
        costs = counts[own] * counts[other.clamp(min=0)]  # pairs of points
        too_costly = one_sided & (costs > MAX_PAIRS)
        size, total = sizes[ids], sizes[ids] + sizes[other.clamp(min=0)]
        # The bound that the formula gives with the lower bound in place of D(i, B).
        lowered = (size * distances + (total - size) * self.lower_bound[:, None]) / total
        lower_bound = torch.minimum(self.lower_bound, lowered.where(too_costly, torch.inf).amin(1))
        rows, columns = (one_sided & ~too_costly).nonzero(as_tuple=True)
        rest[rows, columns] = self._clusters.mean_distances(rows, other[rows, columns])
        mean = (size * distances + (total - size) * rest) / total
        distances = torch.where(entries.first_of_pair | (one_sided & ~too_costly), mean, distances)
        removed = ~entries.listed | entries.duplicate | too_costly
        distances = distances.masked_fill(removed, torch.inf)
        return self._sorted(own[:, 0], entries.ids.clamp(min=0), distances, lower_bound)

    def _joined(
        self,
        into: Tensor,
        dropped: Tensor,
        partner: Tensor,
        ids: Tensor,
        distances: Tensor,
        lower_bound: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The lists of the clusters that the round makes, from those of their halves (n, k)."""
        clusters = self._clusters
        width = ids.shape[1]
        share = clusters.sizes[dropped] / (clusters.sizes[into] + clusters.sizes[dropped])
        shares = torch.stack([1 - share, share], 1)  # (p, 2)
        bounds = torch.stack([lower_bound[into], lower_bound[dropped]], 1)  # (p, 2)
        bound = (shares * bounds).sum(1)  # of what is in neither list
        all_distances = torch.cat([distances[into], distances[dropped]], 1)  # (p, 2k)
        entries = _pair_entries(torch.cat([ids[into], ids[dropped]], 1), all_distances.isfinite())
        side = torch.arange(2, device=ids.device).repeat_interleave(width).expand_as(all_distances)
        side = side.gather(1, entries.order)
        listed_distances = all_distances.gather(1, entries.order)
        # The distance from the other half: of the next entry where both halves list the neighbour.
        other_distances = entries.distance_of_duplicate(listed_distances)
        # Else it is summed from the half that does not list it to all points of the neighbour after
        # the round, whose two halves lie one behind the other (`TorchClusters.arrange`).
        half = torch.stack([into, dropped], 1).gather(1, 1 - side)
        neighbour = entries.ids.clamp(min=0)
        second = partner[neighbour]
        points = clusters.counts[neighbour]
        points += torch.where(second >= 0, clusters.counts[second.clamp(min=0)], 0)
        one_sided = entries.listed & ~entries.duplicate & ~entries.first_of_pair
        too_costly = one_sided & (clusters.counts[half] * points > MAX_PAIRS)
        weight = shares.gather(1, side)
        lowered = weight * listed_distances + (1 - weight) * bounds.gather(1, 1 - side)
        bound = torch.minimum(bound, lowered.where(too_costly, torch.inf).amin(1))
        rows, columns = (one_sided & ~too_costly).nonzero(as_tuple=True)
        other_distances[rows, columns] = clusters.mean_distances(
            half[rows, columns], neighbour[rows, columns], points[rows, columns]
        )
        mean = weight * listed_distances + (1 - weight) * other_distances
        removed = ~entries.listed | entries.duplicate | too_costly
        return self._sorted(into, neighbour, mean.masked_fill(removed, torch.inf), bound)


class _Entries(NamedTuple):
    """Entries of lists (R, m), sorted so that two of the same cluster are neighbours."""

    order: Tensor  # where they were before
    ids: Tensor  # negative where nothing is listed
    listed: Tensor
    duplicate: Tensor  # the second of two
    first_of_pair: Tensor  # the first of two

    def distance_of_duplicate(self, distances: Tensor) -> Tensor:
        """For the first of two entries the distance of the second; NaN for all others."""
        rest = torch.full_like(distances, torch.nan)
        rest[:, :-1] = torch.where(self.first_of_pair[:, :-1], distances[:, 1:], torch.nan)
        return rest


def _pair_entries(ids: Tensor, listed: Tensor) -> _Entries:
    # Negative numbers, no two alike, keep apart what is not listed.
    unlisted = -1 - torch.arange(ids.shape[1], device=ids.device)
    ids, order = torch.where(listed, ids, unlisted).sort(dim=1, stable=True)
    listed = ids >= 0
    duplicate = torch.zeros_like(listed)
    duplicate[:, 1:] = (ids[:, 1:] == ids[:, :-1]) & listed[:, 1:]
    first_of_pair = torch.zeros_like(listed)
    first_of_pair[:, :-1] = duplicate[:, 1:]
    return _Entries(order, ids, listed, duplicate, first_of_pair)


def _tie(first: Tensor, second: Tensor) -> Tensor:
    """Hash of pairs of nodes, in either order (the finaliser of SplitMix64)."""
    x = torch.maximum(first, second) * -0x61C8864680B583EB + torch.minimum(first, second)
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right; torch's keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
