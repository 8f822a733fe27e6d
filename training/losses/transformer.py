"""What the transformer is trained for: the next token of its vocabulary, and the token's cluster.

The vocabulary are the clusters of a prior, or all codes. Partitions of it, the levels, may each add
``-weight log P(cluster of the target)``, where ``P`` is the sum of the softmax over the cluster:
one level is IAR's cluster-oriented loss, nested cuts of a tree are a multi-level one. Gradient of a
logit: ``p - p / P`` inside the target's cluster, ``p`` outside it. A cluster of one token repeats
the token's own loss, one of all tokens adds nothing.

Hu et al.: Improving Autoregressive Visual Generation with Cluster-Oriented Token Prediction. 2025.

Legend: B images, L positions, K vocabulary, C width, N = B L.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from masc_core.models.gpt import GPT
from masc_core.prior import ClusterMap
from masc_core.sampling.cluster_softmax import ClusterSoftmax, logsumexp

LN2 = math.log(2)  # of a bit
CHUNK_LOGITS = 1 << 25  # 4,096 positions over 8,192 clusters; their float32 softmax is 128 MiB


class ClusterLevel(NamedTuple):
    """Clusters of the vocabulary that the loss knows of."""

    partition: ClusterMap  # of the K tokens
    weight: float  # of -log P(cluster of the target); IAR's lambda


class NextClusterLoss(nn.Module):
    """Mean cross-entropy over all positions of a model with logits (B, L, K)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, classes: Tensor, clusters: Tensor) -> dict[str, Tensor]:
        """``loss`` in nats and ``bits``, of classes int64 (B,) and clusters int64 (B, L)."""
        logits = self.model(classes, clusters[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), clusters.flatten())
        return {"loss": loss, "bits": loss.detach() / LN2}


class LinearNextClusterLoss(nn.Module):
    """The same for a `GPT`, without the logits of all positions at once, and with levels.

    For models that are not compiled together with their loss: a compiler fuses what follows the
    logits, and needs no chunks. Levels are never compiled: their sums have as many terms as the
    targets' clusters have members. If the model is sharded, FSDP must know of its ``hidden``.

    Parameters
    ----------
    compiled : compile the model up to the hidden states
    """

    def __init__(
        self, model: GPT, levels: Sequence[ClusterLevel] = (), *, compiled: bool = False
    ) -> None:
        super().__init__()
        self.model, self._levels = model, on_device(levels, model.output.weight.device)
        self._hidden = torch.compile(model.hidden) if compiled else model.hidden
        self._names = [
            "bits",
            *(f"cluster_bits_{level.partition.num_clusters}" for level in levels),
        ]

    def forward(self, classes: Tensor, clusters: Tensor) -> dict[str, Tensor]:
        """As `NextClusterLoss.forward`, and ``cluster_bits_k`` of a level of k clusters."""
        hidden = self._hidden(classes, clusters[:, :-1]).flatten(0, 1)
        loss, parts = fused_linear_cross_entropy(
            hidden, self.model.output.weight, clusters.flatten(), self._levels
        )
        return {"loss": loss, **dict(zip(self._names, parts / LN2, strict=True))}


@dataclass(frozen=True, slots=True)
class CrossEntropyAndEntropy:
    """In bits."""

    cross_entropy: Tensor  # of the true clusters
    entropy: Tensor  # how unsure the predictions are


def cross_entropy_and_entropy(logits: Tensor, clusters: Tensor) -> CrossEntropyAndEntropy:
    """Sums over all positions, scalars, of predictions (B, L, K) of clusters int64 (B, L)."""
    found = position_cross_entropy_and_entropy(logits, clusters)
    return CrossEntropyAndEntropy(found.cross_entropy.sum(), found.entropy.sum())


def position_cross_entropy_and_entropy(logits: Tensor, clusters: Tensor) -> CrossEntropyAndEntropy:
    """Each position's, float32 (B, L), at temperature 1."""
    log_p = logits.float().log_softmax(dim=-1)
    true_log_p = log_p.gather(-1, clusters[..., None]).squeeze(-1)
    return CrossEntropyAndEntropy(-true_log_p / LN2, torch.special.entr(log_p.exp()).sum(-1) / LN2)


def cluster_cross_entropy_and_entropy(
    logits: Tensor, clusters: Tensor, softmax: ClusterSoftmax, chunk_logits: int = CHUNK_LOGITS
) -> CrossEntropyAndEntropy:
    """The same for the clusters of a partition of the vocabulary, which sum its probabilities."""
    chunk_positions = max(1, chunk_logits // logits.shape[-1])
    cross_entropies, entropies = [], []
    parts = torch.split(logits.flatten(0, 1), chunk_positions)
    for part, true in zip(parts, torch.split(clusters.flatten(), chunk_positions), strict=True):
        log_p = part.float().log_softmax(dim=-1)
        cross_entropies.append(-_cluster_log_p(log_p, true, softmax).log_p / LN2)
        labels = softmax.labels.expand_as(log_p)
        p = log_p.new_zeros(len(log_p), softmax.num_clusters).scatter_add_(1, labels, log_p.exp_())
        entropies.append(torch.special.entr(p).sum(-1) / LN2)
    return CrossEntropyAndEntropy(
        torch.cat(cross_entropies).view_as(clusters), torch.cat(entropies).view_as(clusters)
    )


Levels = Sequence[tuple[ClusterSoftmax, float]]


def on_device(levels: Sequence[ClusterLevel], device: torch.device) -> Levels:
    """Levels as `fused_linear_cross_entropy` takes them."""
    return [(ClusterSoftmax(level.partition, device), level.weight) for level in levels]


def fused_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    clusters: Tensor,
    levels: Levels = (),
    chunk_logits: int = CHUNK_LOGITS,
) -> tuple[Tensor, Tensor]:
    """Mean over the positions of the cross-entropy of ``hidden @ weight.T``, in nats.

    The logits of all positions at once take 16 bytes a position and cluster in bfloat16 training:
    themselves in both precisions, their softmax, and its gradient in both. Here one chunk of
    positions after the other has its logits, its loss and, while they are at hand, its gradients:
    as many products as before, and nothing is computed twice. (Hsu et al.: Liger Kernel: Efficient
    Triton Kernels for LLM Training. 2024.)

    Of a level only the members of the targets' clusters are read.

    Products have autocast's type where it is on; softmax and sums are float32.

    Parameters
    ----------
    hidden : (N, C)
    weight : (K, C), of the head
    clusters : int64 (N,), the true ones
    levels : partitions of the K, and the weights of their losses
    chunk_logits : how many logits there are at once; never fewer than one position's

    Returns
    -------
    float32 scalar, which can be differentiated once; and its parts before they are weighted,
    float32 (1 + levels,): of the vocabulary, of each level
    """
    positions = max(1, chunk_logits // len(weight))
    return _FusedLinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, clusters, levels, positions
    )


class _FusedLinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients of hidden states and weight with the loss, for a gradient of one."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch has no type for it
        hidden: Tensor,
        weight: Tensor,
        clusters: Tensor,
        levels: Levels,
        positions: int,
    ) -> tuple[Tensor, Tensor]:
        dtype = _product_dtype(hidden)
        x, w = hidden.to(dtype), weight.to(dtype)
        is_training = any(ctx.needs_input_grad)
        weights = torch.tensor(
            [1.0, *(level_weight for _, level_weight in levels)], device=x.device
        )
        parts = torch.zeros_like(weights)
        x_grad, w_grad = torch.empty_like(x), torch.zeros_like(w, dtype=torch.float32)
        for start in range(0, len(x), positions):
            part = slice(start, start + positions)
            true = clusters[part, None]
            log_p = F.log_softmax(F.linear(x[part], w), dim=-1, dtype=torch.float32)
            parts[0] -= log_p.gather(1, true).sum()
            found = [_cluster_log_p(log_p, clusters[part], softmax) for softmax, _ in levels]
            for number, cluster in enumerate(found, 1):
                parts[number] -= cluster.log_p.sum()
            if is_training:
                # By the logits: the softmax, less one at the true cluster.
                less = -torch.ones_like(true, dtype=torch.float32)
                grad = log_p.exp_()
                if levels:
                    grad *= weights.sum()
                grad.scatter_add_(1, true, less)
                for cluster, (_, level_weight) in zip(found, levels, strict=True):
                    # Less the softmax within the target's cluster, at its members.
                    grad.view(-1).scatter_add_(0, cluster.members, cluster.shares * -level_weight)
                grad = grad.div_(len(x)).to(dtype)
                x_grad[part] = grad @ w
                w_grad += grad.t() @ x[part]
        ctx.save_for_backward(x_grad.to(hidden.dtype), w_grad.to(weight.dtype))
        parts /= len(x)
        ctx.mark_non_differentiable(parts)
        return (parts * weights).sum(), parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _parts: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - as above
        x_grad, w_grad = ctx.saved_tensors
        return x_grad * grad.to(x_grad.dtype), w_grad * grad.to(w_grad.dtype), None, None, None


class _ClusterLogP(NamedTuple):
    log_p: Tensor  # (n,), of the cluster of each target
    members: Tensor  # int64 (P,), where these clusters' tokens are in (n, K), laid flat
    shares: Tensor  # (P,), their probabilities within the cluster


def _cluster_log_p(log_p: Tensor, targets: Tensor, softmax: ClusterSoftmax) -> _ClusterLogP:
    """Of the clusters of the targets, int64 (n,), by log probabilities (n, K) of their tokens."""
    ragged = softmax.ragged(softmax.labels[targets])
    members = ragged.rows * log_p.shape[1] + ragged.codes
    scores = log_p.view(-1)[members]
    sums = logsumexp(scores, ragged)
    return _ClusterLogP(sums, members, (scores - sums[ragged.rows]).exp())


def _product_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
