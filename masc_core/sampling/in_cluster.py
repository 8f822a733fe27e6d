"""From a predicted cluster to one of its codes, and which decodings a model offers.

``uniform`` draws every code of the cluster alike; ``frequency`` draws code c with probability
``count(c) / sum of the counts in its cluster``, and uniformly where no code was ever counted.
Both are integer arithmetic on random words that belong to (seed, position), so all devices and all
batches agree bit for bit. ``refine`` asks a second model: see `RefinerSampler`. ``complete`` asks
another one once all clusters are drawn (`masc_core.sampling.completion`); until then codes as of
``frequency`` stand for those to come.

Legend: B rows, V codes, K clusters, m codes of the largest one, C the transformer's width. Clusters
are ragged (sizes are very skewed), so a row costs two look-ups (uniform) or a binary search over V
(frequency), and no table is padded.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from masc_core.arrays import IntArray
from masc_core.errors import InvalidFieldError
from masc_core.models.completer import Completer
from masc_core.models.kv_cache import KVLayer, Rows
from masc_core.models.projection import PackedWeight, can_pack
from masc_core.models.refiner import Refiner
from masc_core.prior import ClusterMap
from masc_core.sampling.cluster_softmax import ClusterSoftmax
from masc_core.sampling.params import Decoding, SamplingSettings, check_cluster_filters
from masc_core.sampling.sampler import MIN_TEMPERATURE, Partition

UNIFORM, FREQUENCY, REFINE, COMPLETE = 0, 1, 2, 3
MODEL_FREE_DECODINGS = {"uniform": UNIFORM, "frequency": FREQUENCY}  # that need no other model
DECODING_IDS = {**MODEL_FREE_DECODINGS, "refine": REFINE, "complete": COMPLETE}

# 32 random bits times a cluster's total must fit in int64: totals are kept below 2**31.
TOTAL_BITS = 30


class CodeSampler:
    """Draws codes from clusters.

    Parameters
    ----------
    prior : code -> one of the K clusters that are predicted
    counts : int (V,), how often each code occurs in the training data; without them ``frequency``
        is not offered
    device : where codes are drawn
    refiner : on that device, in evaluation mode; without one ``refine`` is not offered
    completer : likewise, for ``complete``
    coarse_partition : a coarser map of the codes, each cluster a union of the prior's

    Attributes
    ----------
    decodings : what is offered
    labels : int64 (V,), cluster of each code
    coarse_partition : the coarser clusters of the K that are drawn; None without them
    """

    def __init__(
        self,
        prior: ClusterMap,
        counts: npt.ArrayLike | None = None,
        device: torch.device | str = "cpu",
        refiner: Refiner | None = None,
        completer: Completer | None = None,
        coarse_partition: ClusterMap | None = None,
    ) -> None:
        self.prior, self._refiner, self._completer = prior, refiner, completer
        self.coarse_partition: Partition | None = None
        if coarse_partition is not None:
            labels = torch.tensor(coarse_partition.over(prior).labels, device=device)
            self.coarse_partition = Partition(labels, coarse_partition.num_clusters)
        self.decodings = offered(
            counts=counts is not None,
            refiner=refiner is not None,
            completer=completer is not None,
        )
        self.labels = torch.tensor(prior.labels, device=device)
        weights = _weigh_members(prior, np.zeros_like(prior.labels) if counts is None else counts)
        cdf = np.cumsum(weights)
        cdf_offsets = np.concatenate([[0], cdf])[prior.offsets]  # (K+1,)
        self._members = torch.tensor(prior.members, device=device)
        self._offsets = torch.tensor(prior.offsets[:-1], device=device)
        self._sizes = torch.tensor(prior.sizes, device=device)
        self._cdf = torch.tensor(cdf, device=device)
        self._cdf_offsets = torch.tensor(cdf_offsets[:-1], device=device)
        self._cluster_counts = torch.tensor(np.diff(cdf_offsets), device=device)

    def check(self, settings: SamplingSettings) -> None:
        """Refuse a decoding or filters that are not offered, with an `InvalidFieldError`."""
        if settings.decoding not in self.decodings:
            raise self._refusal(settings.decoding)
        check_cluster_filters(settings, has_partition=self.coarse_partition is not None)

    @property
    def refiner(self) -> Refiner:
        """What draws the codes of ``refine``; an `InvalidFieldError` where that is not offered."""
        if self._refiner is None:
            raise self._refusal("refine")
        return self._refiner

    @property
    def completer(self) -> Completer:
        """The same for ``complete``."""
        if self._completer is None:
            raise self._refusal("complete")
        return self._completer

    def sample_code(self, clusters: Tensor, random_bits: Tensor, decodings: Tensor) -> Tensor:
        """Draw one code a row, int64 (B,).

        Parameters
        ----------
        clusters : int64 (B,)
        random_bits : int64 (B,), see `masc_core.sampling.rng.code_bits`
        decodings : int64 (B,), of ``DECODING_IDS``; here ``REFINE`` draws as ``UNIFORM``,
            ``COMPLETE`` as ``FREQUENCY``
        """
        uniform = self._offsets[clusters] + (random_bits * self._sizes[clusters] >> 32)
        totals = self._cluster_counts[clusters]
        targets = self._cdf_offsets[clusters] + (random_bits * totals >> 32)
        # The first member whose cumulative count exceeds the target: never one with a count of 0.
        counted = torch.searchsorted(self._cdf, targets, right=True)
        by_count = ((decodings == FREQUENCY) | (decodings == COMPLETE)) & (totals > 0)
        return self._members[torch.where(by_count, counted, uniform)]

    def _refusal(self, decoding: str) -> InvalidFieldError:
        offer = " or ".join(map(repr, self.decodings))
        return InvalidFieldError("decoding", f"decoding must be {offer}, got {decoding!r}")


class RefinerSampler:
    """Draws the codes of images in slots with the refiner, one position after the other.

    A draw inverts the cumulative distribution at the image's own random word. The temperature and
    the filters of an image concern its clusters; within a cluster the distribution is the refiner's
    own, but at temperature 0 the most probable code is taken.

    Parameters
    ----------
    refiner : in evaluation mode
    prior : code -> one of the K clusters
    num_slots, kernels : as for `masc_core.models.kv_cache.KVCache`
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
        self,
        hidden: Tensor,
        clusters: Tensor,
        rows: Rows,
        random_bits: Tensor,
        temperatures: Tensor,
    ) -> Tensor:
        """Draw the next code of every image, int64 (B,).

        Parameters
        ----------
        hidden : (B, C), of the transformer's conditional rows
        clusters : int64 (B,), just drawn
        rows : their ids are the codes before, anything at position 0
        random_bits : int64 (B,), see `masc_core.sampling.rng.code_bits`
        temperatures : float32 (B,)
        """
        vectors = self._refiner.step(hidden.to(self._table.dtype), clusters, rows, self._cache)
        codes, is_member = self._softmax.padded(clusters)
        # A product with all codes: with the members alone its shape would depend on their number.
        scores = self._scores(vectors).gather(1, codes).float()
        indices = sample_index(
            scores.masked_fill(~is_member, -torch.inf), random_bits, temperatures
        )
        return codes.gather(1, indices[:, None]).squeeze(1)

    def _scores(self, vectors: Tensor) -> Tensor:
        """Scores (B, V) of all codes, from what the refiner returns."""
        if self._packed_table is not None:
            return self._packed_table.multiply(vectors.float())
        return F.linear(vectors, self._table)


def sample_index(scores: Tensor, random_bits: Tensor, temperatures: Tensor) -> Tensor:
    """Sample an index per row, int64 (B,), from the softmax of its scores.

    Parameters
    ----------
    scores : float32 (B, m); minus infinity is a probability of zero
    random_bits : int64 (B,), random words in [0, 2^32)
    temperatures : float32 (B,), at 0 that of the highest score is taken
    """
    highest = scores.amax(-1, keepdim=True)
    cdf = (scores - highest).double().exp().cumsum(-1)
    targets = (random_bits.double() + 0.5) * 2.0**-32 * cdf[:, -1]
    # The first whose end exceeds the target: never one with a probability of 0.
    drawn = (cdf <= targets[:, None]).sum(-1)
    return torch.where(temperatures <= MIN_TEMPERATURE, scores.argmax(-1), drawn)


def offered(*, counts: bool, refiner: bool, completer: bool) -> tuple[Decoding, ...]:
    """Decodings of a model with or without counts, a refiner and a completer."""
    has: dict[Decoding, bool] = {
        "uniform": True,
        "frequency": counts,
        "refine": refiner,
        "complete": completer,
    }
    return tuple(name for name in has if has[name])


def _weigh_members(prior: ClusterMap, counts: npt.ArrayLike) -> IntArray:
    """Bring counts into the order of ``prior.members``; scale clusters down that are too large.

    A count that is not zero stays so.
    """
    array = np.asarray(counts)
    if array.shape != (prior.num_codes,) or array.dtype.kind not in "iu":
        raise ValueError(
            f"counts must be {prior.num_codes} integers, got {array.dtype} of shape {array.shape}"
        )
    array = array.astype(np.int64)
    if (array < 0).any():
        raise ValueError(f"code {int(np.argmax(array < 0))} has a negative count")
    weights: IntArray = array[prior.members]
    totals = np.add.reduceat(weights.astype(np.float64), prior.offsets[:-1])
    shifts = np.maximum(np.frexp(totals)[1] - TOTAL_BITS, 0)  # total < 2**exponent
    shifted = weights >> np.repeat(shifts, prior.sizes)
    return np.maximum(shifted, np.minimum(weights, 1))
