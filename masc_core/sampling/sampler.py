"""From logits to a token: guidance, entropy, temperature, filters, draw; `sample` is their order.

It is LlamaGen's: classifier-free guidance, division by the temperature, the top k, the top p of
what is left, draw. The draw is ``argmax(logits + gumbel)``, which samples from the softmax
(Gumbel-max). Where the vocabulary has a coarse partition, its clusters are filtered before tokens.
Rows may all have parameters of their own; nothing loops over rows.

Legend: B rows, K vocabulary, k clusters of a coarse partition of it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Below it a temperature would overflow the logits; at it the draw is the argmax.
MIN_TEMPERATURE = 1e-5


class Partition(NamedTuple):
    """A coarse partition of the vocabulary: it maps the tokens, clusters of the prior, to fewer."""

    labels: Tensor  # int64 (K,), of each token
    num_clusters: int


class Filters(NamedTuple):
    """Filters of the rows; see `filter_logits` and, of a coarse partition, `filter_coarse`."""

    top_k: Tensor  # int64 (B,)
    top_p: Tensor  # float64 (B,)
    cluster_top_k: Tensor  # int64 (B,)
    cluster_top_p: Tensor  # float64 (B,)


class Sampled(NamedTuple):
    """What was drawn, and the entropy of what it was drawn from."""

    tokens: Tensor  # int64 (B,)
    entropies: Tensor  # float32 (B,), bits; with guidance, before temperature and filters
    finite: Tensor  # bool (B,), whether the guided logits are; where not, the rest means nothing
    cluster_entropies: Tensor | None  # as entropies, of the clusters of a coarse partition


def sample(
    cond: Tensor,
    uncond: Tensor,
    cfg_scale: Tensor,
    temperature: Tensor,
    filters: Filters | None,
    noise: Tensor,
    partition: Partition | None = None,
) -> Sampled:
    """Draw a token per row.

    Parameters
    ----------
    cond, uncond : float32 (B, K), logits given the class and given none; the same for a row that
        is not guided, whose cfg_scale is 1
    cfg_scale, temperature : float32 (B,)
    filters : None where no row has any; those of clusters need a partition
    noise : float32 (B, K), of `masc_core.sampling.rng.gumbel` for the images' seeds and positions
    """
    logits = apply_cfg(cond, uncond, cfg_scale)
    entropies, finite = entropy_bits(logits), logits.isfinite().all(1)
    cluster_entropies = partition and entropy_bits(coarse_logits(logits, partition))
    logits = apply_temperature(logits, temperature)
    if filters is not None:
        if partition is not None:
            clusters = filters.cluster_top_k, filters.cluster_top_p
            logits = filter_coarse(logits, partition, *clusters)
        logits = filter_logits(logits, filters.top_k, filters.top_p)
    return Sampled(draw(logits, noise), entropies, finite, cluster_entropies)


def apply_cfg(cond: Tensor, uncond: Tensor, cfg_scale: Tensor) -> Tensor:
    """Classifier-free guidance (B, K), ``uncond + cfg_scale (cond - uncond)``; see `sample`."""
    return uncond + cfg_scale[:, None] * (cond - uncond)


def entropy_bits(logits: Tensor) -> Tensor:
    """Entropy of the softmax of (B, K), ``-sum p log2 p``, float32 (B,), in bits.

    A logit of minus infinity is a probability of zero, which adds nothing.
    """
    # In float64: float32 sums depend on how many rows there are, and on the device.
    logs = logits.double().log_softmax(-1)
    probabilities = logs.exp()
    terms = torch.where(probabilities > 0, probabilities * logs, 0.0)
    return (terms.sum(-1) / -math.log(2)).clamp(min=0).float()


def apply_temperature(logits: Tensor, temperature: Tensor) -> Tensor:
    """Divide rows (B, K) by their temperatures (B,), in effect at least ``MIN_TEMPERATURE``."""
    return logits / temperature.clamp(min=MIN_TEMPERATURE)[:, None]


def filter_logits(logits: Tensor, top_k: Tensor | None, top_p: Tensor | None) -> Tensor:
    """Put minus infinity where a row's filters remove a token.

    Parameters
    ----------
    logits : float (B, K)
    top_k : int64 (B,), keep the k largest and their ties; 0 and k >= K keep all; None: off for all
    top_p : float (B,), of what is left keep the most probable until their sum exceeds p, at least
        one, and of equal ones the lower ids first; 1 keeps all; None: off for all
    """
    if top_k is None and top_p is None:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        last = (top_k.clamp(max=logits.shape[-1]) - 1).clamp(min=0)[:, None]
        least = ordered.gather(1, last).masked_fill(top_k[:, None] == 0, -math.inf)
        logits = logits.masked_fill(logits < least, -math.inf)
        ordered = ordered.masked_fill(ordered < least, -math.inf)
    if top_p is not None:
        before = F.pad(ordered.double().softmax(-1).cumsum(-1)[:, :-1], (1, 0))
        over = (before > top_p[:, None]) & (top_p < 1)[:, None]
        logits = logits.masked_fill(over.scatter(1, order, over), -math.inf)
    return logits


def filter_coarse(logits: Tensor, partition: Partition, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Put minus infinity for tokens (B, K) of clusters that `filter_logits` removes.

    The probability of a cluster is the sum of its tokens'.
    """
    clusters = filter_logits(coarse_logits(logits, partition), top_k, top_p)
    removed = clusters[:, partition.labels].isneginf()
    return logits.masked_fill(removed, -math.inf)


def coarse_logits(logits: Tensor, partition: Partition) -> Tensor:
    """Logarithms of the clusters' probabilities plus a constant, float64 (B, k), of logits (B, K).

    A cluster that is 2^-40 times as probable as the likeliest token, or less, counts as that.
    """
    # Sums of integers are the same in any order, in which devices and kernels add as they like.
    unit = 2.0 ** (62 - logits.shape[-1].bit_length())
    powers = (logits.double() - logits.amax(-1, keepdim=True)).exp()
    sums = torch.zeros(
        len(logits), partition.num_clusters, dtype=torch.int64, device=logits.device
    ).scatter_add(1, partition.labels.expand_as(logits), (powers * unit).round().long())
    return sums.clamp(min=1).double().log()


def draw(logits: Tensor, noise: Tensor) -> Tensor:
    """Sample a token per row, int64 (B,), from the softmax of (B, K); see `sample` for noise."""
    return (logits + noise).argmax(-1)
