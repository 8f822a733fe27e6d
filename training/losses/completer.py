"""What the completer is trained for: the code of every cell, given the clusters of all.

With ``p`` a softmax over all codes and ``P(z)`` its sum over the cluster z of the cell, the loss of
a softmax over the cluster's members is ``-log p(f) + log P(z)``: the loss of the flat vocabulary,
and a cluster level of weight -1.

Legend: B images, L positions, n positions that count.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from masc_core.models.completer import Completer
from masc_core.prior import ClusterMap
from masc_core.sampling.cluster_softmax import ClusterSoftmax
from training.losses.transformer import LN2, fused_linear_cross_entropy


class CompletionLoss(nn.Module):
    """Mean cross-entropy over all positions, teacher-forced on the clusters of the true codes.

    A cluster of one code has nothing to predict: in the softmax ``member`` its loss is 0, and costs
    nothing. There are never logits of all positions at once.

    Parameters
    ----------
    siblings : families of clusters, a partition of the K
    corruption : share of the clusters that training replaces by any of their family, as a
        transformer may draw a near one; the loss stays that of the true cluster
    """

    def __init__(
        self,
        completer: Completer,
        prior: ClusterMap,
        siblings: ClusterMap | None = None,
        corruption: float = 0.0,
    ) -> None:
        super().__init__()
        device = completer.output.weight.device
        self.completer, self._corruption = completer, corruption
        self._softmax = ClusterSoftmax(prior, device)
        self._siblings = None if siblings is None else ClusterSoftmax(siblings, device)
        self._is_member = completer.config.softmax == "member"

    def forward(self, classes: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """``loss`` in nats, ``bits`` a position, of classes int64 (B,) and codes int64 (B, L)."""
        loss, _ = self._losses(classes, codes, [(self._softmax, -1.0)] if self._is_member else [])
        return {"loss": loss, "bits": loss.detach() / LN2}

    def bits(self, classes: Tensor, codes: Tensor) -> Tensor:
        """Means over the positions, (2,): bits of what is learned, and within the true cluster."""
        _, parts = self._losses(classes, codes, [(self._softmax, -1.0)])
        in_cluster = parts[0] - parts[1]
        return torch.stack([in_cluster if self._is_member else parts[0], in_cluster]) / LN2

    def _losses(
        self, classes: Tensor, codes: Tensor, levels: list[tuple[ClusterSoftmax, float]]
    ) -> tuple[Tensor, Tensor]:
        """`fused_linear_cross_entropy` as means over all positions, counted or not."""
        clusters, targets = self._softmax.labels[codes], codes.flatten()
        hidden = self.completer.hidden(classes, self._corrupt(clusters)).flatten(0, 1)
        weight = self.completer.output.weight
        if self._is_member:
            rows = (self._softmax.sizes[clusters.flatten()] > 1).nonzero().flatten()
            if not len(rows):
                return 0.0 * (hidden.sum() + weight.sum()), hidden.new_zeros(2)  # has gradients
            hidden, targets = hidden.index_select(0, rows), targets[rows]
        loss, parts = fused_linear_cross_entropy(hidden, weight, targets, levels)
        share = len(targets) / codes.numel()
        return loss * share, parts * share

    def _corrupt(self, clusters: Tensor) -> Tensor:
        if self._siblings is None or not self.training:
            return clusters
        sibling_table, is_sibling = self._siblings.padded(self._siblings.labels[clusters.flatten()])
        drawn = torch.multinomial(is_sibling.float(), 1)
        siblings = sibling_table.gather(1, drawn).view_as(clusters)
        is_replaced = torch.rand(clusters.shape, device=clusters.device) < self._corruption
        return torch.where(is_replaced, siblings, clusters)
