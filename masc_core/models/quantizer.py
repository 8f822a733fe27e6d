"""Vector quantizer with an optionally l2-normalised codebook.

``code(z) = argmin_j |z - e_j|^2`` with both sides on the unit sphere when normalised; rows of the
codebook are normalised on the fly, since the optimiser moves the raw ones.

Shapes: B images, E code dimensions, h and w grid, V codes, N = B*h*w vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

USAGE_WINDOW = 65536


@dataclass(frozen=True, slots=True)
class Quantized:
    """What the quantizer makes of features.

    Attributes
    ----------
    quant : (B, E, h, w), the code vectors, with the straight-through gradient
    codes : (B, h*w) int64, raster order
    loss : scalar, codebook + commitment + entropy loss; zero in evaluation mode
    parts : the three terms of ``loss``, detached
    """

    quant: Tensor
    codes: Tensor
    loss: Tensor
    parts: dict[str, Tensor]


class VectorQuantizer(nn.Module):
    """Codebook of V vectors.

    Parameters
    ----------
    num_codes : V
    dim : E
    beta : weight of the commitment loss
    entropy_ratio : weight of the entropy loss; 0 switches it off
    l2_norm : put features and codebook on the unit sphere
    """

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        beta: float = 0.25,
        entropy_ratio: float = 0.0,
        l2_norm: bool = True,
    ) -> None:
        super().__init__()
        self.num_codes, self.dim = num_codes, dim
        self.beta, self.entropy_ratio, self.l2_norm = beta, entropy_ratio, l2_norm
        self.embedding = nn.Embedding(num_codes, dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / num_codes, 1.0 / num_codes)
        if l2_norm and not self.embedding.weight.is_meta:
            with torch.no_grad():
                self.embedding.weight.copy_(F.normalize(self.embedding.weight))
        self.register_buffer("codebook_used", torch.zeros(USAGE_WINDOW))

    def codebook(self) -> Tensor:
        """Effective codebook, float (V, E): the rows that codes stand for."""
        weight = self.embedding.weight
        return F.normalize(weight) if self.l2_norm else weight

    def forward(self, z: Tensor) -> Quantized:
        """Quantize features of shape (B, E, h, w); in float32 whatever autocast says."""
        with torch.autocast(z.device.type, enabled=False):
            rows = z.float().permute(0, 2, 3, 1)  # (B, h, w, E)
            rows = F.normalize(rows, dim=-1) if self.l2_norm else rows
            codebook = self.codebook().float()
            distances = squared_distances(rows.flatten(0, 2), codebook)  # (N, V)
            codes = distances.argmin(dim=1)
            nearest = F.embedding(codes, codebook).view(rows.shape)
            parts = self._losses(rows, nearest, distances) if self.training else {}
            if self.training:
                self._note_usage(codes)
            quant = rows + (nearest - rows).detach()  # straight-through
        return Quantized(
            quant=quant.permute(0, 3, 1, 2),
            codes=codes.view(len(z), -1),
            loss=torch.stack(list(parts.values())).sum() if parts else z.new_zeros(()),
            parts={name: term.detach() for name, term in parts.items()},
        )

    def lookup(self, codes: Tensor) -> Tensor:
        """Code vectors (B, E, h, w) of codes (B, h, w) int64 in [0, V)."""
        return F.embedding(codes, self.codebook()).permute(0, 3, 1, 2)

    def usage(self) -> float:
        """Share of the codebook seen among the last 65,536 training codes.

        The window starts as zeros, as upstream's does, so code 0 counts until it has filled.
        """
        return len(torch.unique(self.get_buffer("codebook_used"))) / self.num_codes

    def _losses(self, rows: Tensor, nearest: Tensor, distances: Tensor) -> dict[str, Tensor]:
        losses = {
            "codebook": F.mse_loss(nearest, rows.detach()),
            "commitment": self.beta * F.mse_loss(rows, nearest.detach()),
        }
        if self.entropy_ratio:
            losses["entropy"] = self.entropy_ratio * entropy_loss(-distances)
        return losses

    def _note_usage(self, codes: Tensor) -> None:
        window = self.get_buffer("codebook_used")
        newest = codes.detach()[-USAGE_WINDOW:].to(window.dtype)
        window.copy_(torch.cat([window[len(newest) :], newest]))


def squared_distances(rows: Tensor, codebook: Tensor) -> Tensor:
    """``|z|^2 + |e|^2 - 2 z.e`` of rows (N, E) and codebook (V, E), as (N, V)."""
    norms = rows.square().sum(1, keepdim=True) + codebook.square().sum(1)
    return norms - 2 * rows @ codebook.t()


def entropy_loss(affinity: Tensor, temperature: float = 0.01) -> Tensor:
    """Mean entropy of the soft assignments minus the entropy of their mean.

    Low when every vector is sure of its code and all codes are in use. ``affinity`` is (N, V).
    """
    scaled = affinity / temperature
    probabilities = scaled.softmax(dim=-1)
    # Upstream adds 1e-5 before the logarithms; inside the log-softmax it has no effect.
    mean = probabilities.mean(dim=0)
    entropy_of_mean = -(mean * (mean + 1e-5).log()).sum()
    mean_entropy = -(probabilities * scaled.log_softmax(dim=-1)).sum(dim=-1).mean()
    return mean_entropy - entropy_of_mean
