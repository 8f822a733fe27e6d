"""Softmax over the codes of each row's cluster, without scores of any other code.

``log p(f | z) = s_f - log sum_{j in z} exp s_j``: what a softmax over all V codes gives whose other
scores are minus infinity. Clusters are ragged and some are a hundred times the mean, so the codes
of all rows stand one behind the other: time and memory go with the sum of the rows' cluster sizes.

Legend: n rows, P codes of all their clusters together, V codes, K clusters, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from masc_core.prior import ClusterMap


class RaggedCodes(NamedTuple):
    """Codes of the rows' clusters, row by row."""

    sizes: Tensor  # int64 (n,), codes in each row's cluster
    rows: Tensor  # int64 (P,), the row that each code belongs to
    ranks: Tensor  # int64 (P,), index in the cluster
    codes: Tensor  # int64 (P,)


class ClusterSoftmax:
    """Softmaxes within the clusters of a prior.

    Attributes
    ----------
    num_clusters : K
    largest : codes of the largest cluster
    labels : int64 (V,), cluster of each code
    sizes : int64 (K,), codes of each cluster
    """

    def __init__(self, prior: ClusterMap, device: torch.device | str = "cpu") -> None:
        self.num_clusters = prior.num_clusters
        self.largest = int(prior.sizes.max())
        self._members = torch.tensor(prior.members, device=device)
        self._offsets = torch.tensor(prior.offsets[:-1], device=device)
        self.sizes = torch.tensor(prior.sizes, device=device)
        self.labels = torch.tensor(prior.labels, device=device)
        indices = torch.empty_like(self.labels)
        indices[self._members] = torch.arange(len(indices), device=device)
        self._ranks = indices - self._offsets[self.labels]  # (V,)

    def loss(self, vectors: Tensor, table: Tensor, clusters: Tensor, codes: Tensor) -> Tensor:
        """``-log p(f | z)`` of every row, float32 (n,), nats.

        A cluster of one code has nothing to predict: its loss is 0, and costs nothing.

        Parameters
        ----------
        vectors : (n, D), whose products with the rows of ``table`` (V, D) are the scores
        clusters, codes : int64 (n,), z, and f, a code of that cluster
        """
        losses = torch.zeros(len(clusters), device=vectors.device)
        multi_code_rows = (self.sizes[clusters] > 1).nonzero().flatten()
        if not len(multi_code_rows):
            return losses + 0.0 * (vectors.sum() + table.sum())  # has gradients, all zero
        ragged = self.ragged(clusters[multi_code_rows])
        # Not by indexing, whose gradient on several cores sums in any order.
        scores = _scores(F.embedding(multi_code_rows, vectors).float(), table, ragged)
        starts = ragged.sizes.cumsum(0) - ragged.sizes
        targets = scores[starts + self._ranks[codes[multi_code_rows]]]
        return losses.index_put((multi_code_rows,), logsumexp(scores, ragged) - targets)

    def ragged(self, clusters: Tensor) -> RaggedCodes:
        """Codes of the clusters, int64 (n,), of the rows."""
        sizes = self.sizes[clusters]
        rows = torch.arange(len(clusters), device=clusters.device).repeat_interleave(sizes)
        starts = sizes.cumsum(0) - sizes
        ranks = torch.arange(len(rows), device=clusters.device) - starts[rows]
        codes = self._members[self._offsets[clusters][rows] + ranks]
        return RaggedCodes(sizes, rows, ranks, codes)

    def padded(self, clusters: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of the clusters, int64 (n, largest), and where they are real, bool.

        The shape depends on no value, so that a GPU can capture it; memory is that of the largest.
        """
        ranks = torch.arange(self.largest, device=clusters.device)
        starts = self._offsets[clusters][:, None]
        codes = self._members[(starts + ranks).clamp(max=len(self._members) - 1)]
        return codes, ranks < self.sizes[clusters][:, None]


def _scores(vectors: Tensor, table: Tensor, ragged: RaggedCodes) -> Tensor:
    """Products (P,) of the rows' vectors (n, D), in their type, with those of codes."""
    ours = F.embedding(ragged.rows, vectors)
    theirs = F.embedding(ragged.codes, table).to(vectors.dtype)
    return (ours * theirs).sum(-1)


def logsumexp(scores: Tensor, ragged: RaggedCodes) -> Tensor:
    """Logarithm (n,) of each row's sum of the exponentials of its scores (P,)."""
    highest = torch.segment_reduce(scores.detach(), "max", lengths=ragged.sizes, unsafe=True)
    powers = (scores - highest[ragged.rows]).exp()
    return highest + torch.segment_reduce(powers, "sum", lengths=ragged.sizes, unsafe=True).log()
