"""What the refiner is trained for: the code within the true cluster.

Legend: B images, L positions, n = B L.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from masc_core.models.gpt import GPT
from masc_core.models.refiner import Refiner
from masc_core.prior import ClusterMap
from masc_core.sampling.cluster_softmax import ClusterSoftmax
from training.losses.transformer import LN2


class InClusterLoss(nn.Module):
    """Mean in-cluster cross-entropy, teacher-forced on true codes and their clusters.

    The transformer is frozen: in evaluation mode, without gradients, and no part of this module.

    Parameters
    ----------
    singletons : whether positions whose cluster has one code, where there is nothing to learn,
        count in the mean
    """

    def __init__(
        self, refiner: Refiner, transformer: GPT, prior: ClusterMap, *, singletons: bool
    ) -> None:
        super().__init__()
        self.refiner, self._frozen = refiner, (transformer.eval(),)
        self._softmax = ClusterSoftmax(prior, transformer.output.weight.device)
        self._singletons = singletons

    def forward(self, classes: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """``loss`` in nats, ``bits`` a position, of classes int64 (B,) and codes int64 (B, L)."""
        losses, is_multi_code = self.losses(classes, codes)
        count = len(losses) if self._singletons else is_multi_code.sum().clamp(min=1)
        return {"loss": losses.sum() / count, "bits": losses.detach().mean() / LN2}

    def losses(self, classes: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each position, float32 (n,), nats; and whether its cluster has several codes."""
        clusters = self._softmax.labels[codes]
        with torch.no_grad():
            hidden = self._frozen[0].hidden(classes, clusters[:, :-1])
        vectors = self.refiner(hidden, clusters, codes)
        flat = clusters.flatten()
        table = self.refiner.code_scores.weight
        losses = self._softmax.loss(vectors.flatten(0, 1), table, flat, codes.flatten())
        return losses, self._softmax.sizes[flat] > 1
