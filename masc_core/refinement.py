"""The refiner at work on images in slots: what it remembers of each, and the draw of their codes.

A draw is the inverse of the distribution function at the image's own random word for (seed,
position). The temperature and the filters of an image concern its clusters; within a cluster the
distribution is the refiner's own, but at temperature 0 the most probable code is taken.
This module does not know which images are to be refined.

Legend: B images, R rows (images and padding), m codes of the largest cluster, V codes, D width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from masc_core.cluster_softmax import ClusterSoftmax, member_scores
from masc_core.models.kv_cache import KVLayer
from masc_core.models.refiner import Refiner
from masc_core.models.rows import Rows
from masc_core.models.slot_cache import SlotLayer
from masc_core.prior import ClusterMap
from masc_core.sampling import MIN_TEMPERATURE


class Refinement:
    """Draws codes, one position after the other.

    Parameters
    ----------
    refiner : in evaluation mode
    prior : the partition
    num_slots : images are known by slots below that
    recordable : whether no shape may depend on a value, and rows are found by slots; otherwise rows
        come in groups, and a row has the same bits in any company on the CPU
    """

    def __init__(
        self, refiner: Refiner, prior: ClusterMap, num_slots: int, *, recordable: bool
    ) -> None:
        refiner.pack()
        config, table = refiner.config, refiner.code_scores.weight
        shape = (num_slots, config.n_head, config.block_size, config.head_dim)
        self._refiner, self._table = refiner, table.detach()
        self._softmax = ClusterSoftmax(prior, table.device)
        self._last = torch.zeros(num_slots, dtype=torch.int64, device=table.device)
        self._cache: SlotLayer | KVLayer
        if recordable:
            self._cache, self._score = SlotLayer(shape, table.dtype, table.device), self._score_all
        else:
            dtype = torch.float32 if table.device.type == "cpu" else table.dtype
            self._cache, self._score = KVLayer(shape, dtype, table.device), self._score_members

    def draw(
        self, hidden: Tensor, clusters: Tensor, rows: Rows, bits: Tensor, temperatures: Tensor
    ) -> Tensor:
        """Draw the next code of every image.

        Parameters
        ----------
        hidden : (R, C), of the transformer's conditional rows
        clusters : int64 (R,), just drawn
        rows : R of them, the first B being images; ids mean nothing
        bits : int64 (B,), see `masc_core.philox.code_bits`
        temperatures : float32 (B,)

        Returns
        -------
        int64 (B,)
        """
        num_images = len(bits)
        rows = replace(rows, ids=self._last[rows.slots])
        hidden = hidden.to(self._table.dtype)
        vectors = self._refiner.step(hidden, clusters, rows, self._cache)[:num_images]
        codes, scores = self._score(vectors, clusters[:num_images])
        places = draw_place(scores, bits, temperatures)
        drawn = codes.gather(1, places[:, None]).squeeze(1)
        self._last[rows.slots[:num_images]] = drawn
        return drawn

    def _score_members(self, vectors: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scores (B, m) of the clusters' members, m of the largest of these clusters."""
        members = self._softmax.members(clusters)
        # In float64: float32 sums depend on how many rows there are.
        ragged = member_scores(vectors.double(), self._table, members).float()
        shape = (len(clusters), int(members.sizes.max()))
        codes = torch.zeros(shape, dtype=torch.int64, device=clusters.device)
        scores = torch.full(shape, -torch.inf, device=clusters.device)
        codes[members.rows, members.ranks] = members.codes
        scores[members.rows, members.ranks] = ragged
        return codes, scores

    def _score_all(self, vectors: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor]:
        """The same with m of the prior's largest cluster, as one product with all codes."""
        codes, real = self._softmax.padded(clusters)
        scores = (vectors @ self._table.T).gather(1, codes).float()
        return codes, scores.masked_fill(~real, -torch.inf)


def draw_place(scores: Tensor, bits: Tensor, temperatures: Tensor) -> Tensor:
    """Sample a place a row from the softmax of its scores.

    Parameters
    ----------
    scores : float32 (B, m); minus infinity is a probability of zero
    bits : int64 (B,), random words in [0, 2^32)
    temperatures : float32 (B,), at 0 the place of the highest score is taken

    Returns
    -------
    int64 (B,)
    """
    highest = scores.amax(-1, keepdim=True)
    ends = (scores - highest).double().exp().cumsum(-1)
    targets = (bits.double() + 0.5) * 2.0**-32 * ends[:, -1]
    # The first place whose end exceeds the target: never one with a probability of 0.
    drawn = (ends <= targets[:, None]).sum(-1)
    return torch.where(temperatures <= MIN_TEMPERATURE, scores.argmax(-1), drawn)
