"""The refiner at work on images in slots: what it remembers of each, and the draw of their codes.

A draw is the inverse of the distribution function at the image's own random word for (seed,
position). The temperature and the filters of an image concern its clusters; within a cluster the
distribution is the refiner's own, but at temperature 0 the most probable code is taken.

Legend: R images, m codes of the prior's largest cluster, V codes, C the transformer's width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from masc_core.models.kv_cache import KVLayer, Rows
from masc_core.models.projection import PackedWeight, can_pack
from masc_core.models.refiner import Refiner
from masc_core.prior import ClusterMap
from masc_core.sampling.cluster_softmax import ClusterSoftmax
from masc_core.sampling.sampler import MIN_TEMPERATURE


class Refinement:
    """Draws codes, one position after the other.

    Parameters
    ----------
    refiner : in evaluation mode
    prior : the partition
    num_slots : images are known by slots below that
    kernels : see `masc_core.models.kv_cache.KVCache`
    """

    def __init__(
        self, refiner: Refiner, prior: ClusterMap, num_slots: int, *, kernels: bool = True
    ) -> None:
        refiner.pack()
        config, table = refiner.config, refiner.code_scores.weight.detach()
        shape = (num_slots, config.n_head, config.block_size, config.head_dim)
        self._refiner, self._table = refiner, table
        # In float32 even where the refiner is not: scores of similar codes differ by little.
        self._packed_table = PackedWeight(table.float()) if can_pack(table.float()) else None
        self._softmax = ClusterSoftmax(prior, table.device)
        self._cache = KVLayer(shape, table.dtype, table.device, kernels=kernels)

    def draw(
        self, hidden: Tensor, clusters: Tensor, rows: Rows, bits: Tensor, temperatures: Tensor
    ) -> Tensor:
        """Draw the next code of every image.

        Parameters
        ----------
        hidden : (R, C), of the transformer's conditional rows
        clusters : int64 (R,), just drawn
        rows : R of them; their ids are the codes before, anything at position 0
        bits : int64 (R,), see `masc_core.sampling.rng.code_bits`
        temperatures : float32 (R,)

        Returns
        -------
        int64 (R,)
        """
        vectors = self._refiner.step(hidden.to(self._table.dtype), clusters, rows, self._cache)
        codes, is_member = self._softmax.padded(clusters)
        # A product with all codes: one with the members alone would have a shape of their number.
        scores = self._scores(vectors).gather(1, codes).float()
        indices = sample_index(scores.masked_fill(~is_member, -torch.inf), bits, temperatures)
        return codes.gather(1, indices[:, None]).squeeze(1)

    def _scores(self, vectors: Tensor) -> Tensor:
        """Scores (R, V) of all codes, from what the refiner returns."""
        if self._packed_table is not None:
            return self._packed_table.multiply(vectors.float())
        return F.linear(vectors, self._table)


def sample_index(scores: Tensor, bits: Tensor, temperatures: Tensor) -> Tensor:
    """Sample an index per row from the softmax of its scores.

    Parameters
    ----------
    scores : float32 (R, m); minus infinity is a probability of zero
    bits : int64 (R,), random words in [0, 2^32)
    temperatures : float32 (R,), at 0 that of the highest score is taken

    Returns
    -------
    int64 (R,)
    """
    highest = scores.amax(-1, keepdim=True)
    ends = (scores - highest).double().exp().cumsum(-1)
    targets = (bits.double() + 0.5) * 2.0**-32 * ends[:, -1]
    # The first whose end exceeds the target: never one with a probability of 0.
    drawn = (ends <= targets[:, None]).sum(-1)
    return torch.where(temperatures <= MIN_TEMPERATURE, scores.argmax(-1), drawn)
