"""From a predicted cluster to one of its codes, and which ways to it a model offers.

``uniform`` draws every code of the cluster alike; ``frequency`` draws code c with probability
``count(c) / sum of the counts in its cluster``, and uniformly where no code was ever counted.
``refine`` asks a second model, in `masc_core.sampling.refinement`; here it draws as ``uniform``.
Everything is integer arithmetic on random words that belong to (seed, position), so all devices
and all batches agree bit for bit.

Legend: B rows, V codes, K clusters. Clusters are ragged (sizes are very skewed), so a row costs two
look-ups (uniform) or a binary search over V (frequency), and no table is padded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from masc_core.bundle.manifest import Decoding
from masc_core.errors import InvalidFieldError
from masc_core.models.refiner import Refiner
from masc_core.prior import ClusterMap, IntArray
from masc_core.sampling.rng import code_bits

UNIFORM = 0
FREQUENCY = 1
REFINE = 2
MODES = {"uniform": UNIFORM, "frequency": FREQUENCY}  # that need no other model
ALL_MODES = {**MODES, "refine": REFINE}

# 32 random bits times a cluster's total must fit in int64: totals are kept below 2**31.
TOTAL_BITS = 30


class InClusterDecoder:
    """Draws codes from clusters.

    Parameters
    ----------
    prior : the partition
    counts : int (V,), how often each code occurs in the training data; without them ``frequency``
        is not offered
    device : where the tables live, and where `decode` works
    refiner : on that device, in evaluation mode; without one ``refine`` is not offered

    Attributes
    ----------
    decodings : what is offered

    Raises
    ------
    ValueError : counts of another shape, not integers, or negative; names the code
    """

    def __init__(
        self,
        prior: ClusterMap,
        counts: npt.ArrayLike | None = None,
        device: torch.device | str = "cpu",
        refiner: Refiner | None = None,
    ) -> None:
        self.prior, self._refiner = prior, refiner
        self.decodings = offered(counts=counts is not None, refiner=refiner is not None)
        weights = _weigh_members(prior, np.zeros_like(prior.labels) if counts is None else counts)
        ends = np.cumsum(weights)
        bases = np.concatenate([[0], ends])[prior.offsets]  # (K+1,)
        self._members = torch.tensor(prior.members, device=device)
        self._offsets = torch.tensor(prior.offsets[:-1], device=device)
        self._sizes = torch.tensor(prior.sizes, device=device)
        self._ends = torch.tensor(ends, device=device)
        self._bases = torch.tensor(bases[:-1], device=device)
        self._totals = torch.tensor(np.diff(bases), device=device)

    def modes(self, decodings: Sequence[str]) -> Tensor:
        """Turn the names of the rows' decodings into the int64 (B,) that `decode` takes.

        Raises
        ------
        InvalidFieldError : a decoding that is not offered
        """
        for name in decodings:
            self.check(name)
        return torch.tensor(
            [ALL_MODES[name] for name in decodings],
            dtype=torch.int64,
            device=self._members.device,
        )

    def check(self, decoding: str) -> None:
        """Refuse a decoding that is not offered, with an `InvalidFieldError`."""
        if decoding not in self.decodings:
            raise self._refusal(decoding)

    @property
    def refiner(self) -> Refiner:
        """What draws the codes of ``refine``; an `InvalidFieldError` where that is not offered."""
        if self._refiner is None:
            raise self._refusal("refine")
        return self._refiner

    def decode(
        self, clusters: Tensor, seeds: Tensor, position: int | Tensor, decodings: Tensor
    ) -> Tensor:
        """Draw one code a row.

        Parameters
        ----------
        clusters : int64 (B,), in 0..K-1
        seeds : int64 (B,), the images' seeds
        position : place in the image, one for all rows or int64 (B,)
        decodings : int64 (B,); see `modes`

        Returns
        -------
        int64 (B,), codes in 0..V-1
        """
        return self.pick(clusters, code_bits(seeds, position), decodings)

    def pick(self, clusters: Tensor, bits: Tensor, decodings: Tensor) -> Tensor:
        """Draw one code a row, as `decode` does, from the rows' `code_bits`, int64 (B,)."""
        uniform = self._offsets[clusters] + (bits * self._sizes[clusters] >> 32)
        totals = self._totals[clusters]
        targets = self._bases[clusters] + (bits * totals >> 32)
        # The first member whose cumulative count exceeds the target: never one with a count of 0.
        counted = torch.searchsorted(self._ends, targets, right=True)
        by_count = (decodings == FREQUENCY) & (totals > 0)
        return self._members[torch.where(by_count, counted, uniform)]

    def _refusal(self, decoding: str) -> InvalidFieldError:
        offer = " or ".join(map(repr, self.decodings))
        return InvalidFieldError("decoding", f"decoding must be {offer}, got {decoding!r}")


def offered(*, counts: bool, refiner: bool) -> tuple[Decoding, ...]:
    """Decodings of a model with or without counts and a refiner."""
    has: dict[Decoding, bool] = {"uniform": True, "frequency": counts, "refine": refiner}
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
    scaled: IntArray = np.maximum(shifted, np.minimum(weights, 1))
    return scaled
