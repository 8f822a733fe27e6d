"""What the transformer is trained for: the next cluster.

Legend: B images, L positions, K clusters, C width, N = B L.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from masc_core.models.gpt import GPT

LN2 = math.log(2)  # of a bit
CHUNK_LOGITS = 1 << 25  # 4,096 positions over 8,192 clusters; their float32 softmax is 128 MiB


class NextClusterLoss(nn.Module):
    """Mean cross-entropy over all positions of a model with logits (B, L, K)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, labels: Tensor, clusters: Tensor) -> dict[str, Tensor]:
        """``loss`` in nats and ``bits``, of labels int64 (B,) and clusters int64 (B, L)."""
        logits = self.model(labels, clusters[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), clusters.flatten())
        return {"loss": loss, "bits": loss.detach() / LN2}


class ChunkedNextClusterLoss(nn.Module):
    """The same for a `GPT`, without the logits of all positions at once.

    For models that are not compiled together with their loss: a compiler fuses what follows the
    logits, and needs no chunks. If the model is sharded, FSDP must know of its ``hidden``.
    """

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, labels: Tensor, clusters: Tensor) -> dict[str, Tensor]:
        """As `NextClusterLoss.forward`."""
        hidden = self.model.hidden(labels, clusters[:, :-1]).flatten(0, 1)
        loss = head_cross_entropy(hidden, self.model.output.weight, clusters.flatten())
        return {"loss": loss, "bits": loss.detach() / LN2}


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
    true = log_p.gather(-1, clusters[..., None]).squeeze(-1)
    return CrossEntropyAndEntropy(-true / LN2, torch.special.entr(log_p.exp()).sum(-1) / LN2)


def head_cross_entropy(
    hidden: Tensor, weight: Tensor, clusters: Tensor, chunk_logits: int = CHUNK_LOGITS
) -> Tensor:
    """Mean over the positions of the cross-entropy of ``hidden @ weight.T``, in nats.

    The logits of all positions at once take 16 bytes a position and cluster in bfloat16 training:
    themselves in both precisions, their softmax, and its gradient in both. Here one chunk of
    positions after the other has its logits, its loss and, while they are at hand, its gradients:
    as many products as before, and nothing is computed twice. (Hsu et al.: Liger Kernel: Efficient
    Triton Kernels for LLM Training. 2024.)

    Products have autocast's type where it is on; softmax and sums are float32.

    Parameters
    ----------
    hidden : (N, C)
    weight : (K, C), of the head
    clusters : int64 (N,), the true ones
    chunk_logits : how many logits there are at once; never fewer than one position's

    Returns
    -------
    float32 scalar, which can be differentiated once
    """
    positions = max(1, chunk_logits // len(weight))
    loss: Tensor = _HeadCrossEntropy.apply(hidden, weight, clusters, positions)  # type: ignore[no-untyped-call]
    return loss


class _HeadCrossEntropy(torch.autograd.Function):
    """Computes the gradients of hidden states and weight with the loss, for a gradient of one."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch has no type for it
        hidden: Tensor,
        weight: Tensor,
        clusters: Tensor,
        positions: int,
    ) -> Tensor:
        dtype = _product_dtype(hidden)
        x, w = hidden.to(dtype), weight.to(dtype)
        is_training = any(ctx.needs_input_grad)
        loss = torch.zeros((), dtype=torch.float32, device=x.device)
        x_grad, w_grad = torch.empty_like(x), torch.zeros_like(w, dtype=torch.float32)
        for start in range(0, len(x), positions):
            part = slice(start, start + positions)
            true = clusters[part, None]
            log_p = F.log_softmax(F.linear(x[part], w), dim=-1, dtype=torch.float32)
            loss -= log_p.gather(1, true).sum()
            if is_training:
                # By the logits: the softmax, less one at the true cluster.
                less = -torch.ones_like(true, dtype=torch.float32)
                grad = log_p.exp_().scatter_add_(1, true, less).div_(len(x)).to(dtype)
                x_grad[part] = grad @ w
                w_grad += grad.t() @ x[part]
        ctx.save_for_backward(x_grad.to(hidden.dtype), w_grad.to(weight.dtype))
        return loss / len(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - as above
        x_grad, w_grad = ctx.saved_tensors
        return x_grad * grad.to(x_grad.dtype), w_grad * grad.to(w_grad.dtype), None, None


def _product_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
