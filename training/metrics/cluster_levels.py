"""How well a model tells the clusters of a partition of its vocabulary, on real images.

Cross-entropy is also given by the size of the target's cluster: where most targets lie in one large
cluster its loss says little, and a cluster of one token repeats what the token's own loss says.

Legend: B images, L positions, K vocabulary, k clusters.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from masc_core.prior import ClusterMap
from masc_core.sampling.cluster_softmax import ClusterSoftmax
from training.losses.transformer import cluster_cross_entropy_and_entropy

SIZES = (1, 2, 16, 128, 1024)  # the smallest of each group
NUM_SUMS = 1 + 2 * len(SIZES)


class ClusterLevelMetrics:
    """Sums over batches, and the figures that their means make.

    Parameters
    ----------
    partition : of the K tokens into k clusters
    """

    def __init__(self, partition: ClusterMap, device: torch.device) -> None:
        self._softmax = ClusterSoftmax(partition, device)
        groups = np.searchsorted(SIZES, partition.sizes, side="right") - 1  # (k,)
        self._present = np.unique(groups).tolist()
        self._groups = torch.tensor(groups[partition.labels], device=device)  # (K,)

    def sums(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Sums over the positions of a batch, float64 (``NUM_SUMS``,); see `metrics`.

        Parameters
        ----------
        logits : (B, L, K)
        tokens : int64 (B, L), the true ones
        """
        found = cluster_cross_entropy_and_entropy(logits, tokens, self._softmax)
        groups = self._groups[tokens].flatten()
        bits = found.cross_entropy.double().flatten()
        split = [
            torch.bincount(groups, weights, minlength=len(SIZES))
            for weights in (bits, torch.ones_like(bits))
        ]
        return torch.cat([found.entropy.double().sum()[None], *split])

    def metrics(self, means: Tensor) -> dict[str, float]:
        """Figures by name, of means over positions: entropy, and by group bits and positions."""
        entropy, *rest = means.tolist()
        bits, shares = rest[: len(SIZES)], rest[len(SIZES) :]
        k = self._softmax.num_clusters
        metrics = {
            f"cluster_bits_{k}": sum(bits),
            f"cluster_entropy_bits_{k}": entropy,
            f"cluster_entropy_ratio_{k}": entropy / math.log2(max(2, k)),
        }
        for group in self._present if len(self._present) > 1 else ():
            share = shares[group]
            metrics[f"cluster_bits_{k}_size_{SIZES[group]}"] = bits[group] / share if share else 0.0
            metrics[f"cluster_share_{k}_size_{SIZES[group]}"] = share
        return metrics
