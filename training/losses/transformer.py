"""What the transformer is trained for: the next cluster.

Legend: B images, L positions, K clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc_core.models.gpt import GPT
from training.losses.head import head_cross_entropy

LN2 = math.log(2)  # of a bit


class NextCluster(nn.Module):
    """Mean cross-entropy over all positions.

    Parameters
    ----------
    model : labels (B,) and clusters (B, L - 1) to logits (B, L, K)
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, labels: Tensor, clusters: Tensor) -> dict[str, Tensor]:
        """``loss`` in nats and ``bits``, of labels int64 (B,) and clusters int64 (B, L)."""
        logits = self.model(labels, clusters[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), clusters.flatten())
        return {"loss": loss, "bits": loss.detach() / LN2}


class NextClusterInChunks(nn.Module):
    """The same for a `GPT`, without the logits of all positions at once.

    For models that are not compiled together with their loss: a compiler fuses what follows the
    logits, and needs no chunks.

    Parameters
    ----------
    model : if it is sharded, FSDP must know of its ``hidden``
    """

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, labels: Tensor, clusters: Tensor) -> dict[str, Tensor]:
        """As `NextCluster.forward`."""
        hidden = self.model.hidden(labels, clusters[:, :-1]).flatten(0, 1)
        loss = head_cross_entropy(hidden, self.model.output.weight, clusters.flatten())
        return {"loss": loss, "bits": loss.detach() / LN2}


@dataclass(frozen=True, slots=True)
class CrossEntropyAndEntropy:
    """In bits.

    Attributes
    ----------
    cross_entropy : of the true clusters
    entropy : how unsure the predictions are
    """

    cross_entropy: Tensor
    entropy: Tensor


def cross_entropy_and_entropy(logits: Tensor, clusters: Tensor) -> CrossEntropyAndEntropy:
    """Sums over all positions, scalars, of predictions (B, L, K) of clusters int64 (B, L)."""
    found = position_cross_entropy_and_entropy(logits, clusters)
    return CrossEntropyAndEntropy(found.cross_entropy.sum(), found.entropy.sum())


def position_cross_entropy_and_entropy(logits: Tensor, clusters: Tensor) -> CrossEntropyAndEntropy:
    """Each position's, float32 (B, L), at temperature 1."""
    log_p = logits.float().log_softmax(dim=-1)
    true = log_p.gather(-1, clusters[..., None]).squeeze(-1)
    return CrossEntropyAndEntropy(-true / LN2, torch.special.entr(log_p.exp()).sum(-1) / LN2)
