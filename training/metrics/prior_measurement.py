"""Everything that is measured of a prior, on one set of images, against one fitted stream of codes.

Legend: V codes, K clusters, E code dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from scipy.sparse import csr_array

from masc_core.prior import ClusterMap
from masc_core.sampling.in_cluster import MODEL_FREE_DECODINGS, CodeSampler
from training.metrics.cluster_bits import ClusterBits, cluster_bits, code_counts, count_pairs
from training.metrics.cluster_statistics import (
    ClusterDistances,
    ClusterSizes,
    cluster_distances,
    cluster_sizes,
)
from training.metrics.semantic_replacement import (
    Estimate,
    Replacement,
    ReplacementTest,
    over_draws,
    paired_difference,
)

Replacements = Mapping[str, Replacement]  # by decoding


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over images of what `Replacement` has per image and draw, under one decoding.

    Attributes
    ----------
    psnr_gain, ssim_gain : over the first method at the same K, paired by image; None where there is
        no other
    """

    psnr: Estimate
    ssim: Estimate
    psnr_to_reconstruction: Estimate
    ssim_to_reconstruction: Estimate
    kept: Estimate
    psnr_gain: Estimate | None
    ssim_gain: Estimate | None


@dataclass(frozen=True, slots=True)
class PriorResult:
    """Everything measured of one prior.

    Attributes
    ----------
    method : how it was made, or the file it was read from
    num_clusters : K
    file : where it lies; empty for the flat vocabulary
    quality : by decoding, ``uniform`` and ``frequency``
    """

    method: str
    num_clusters: int
    file: str
    sizes: ClusterSizes
    distances: ClusterDistances
    bits: ClusterBits
    quality: Mapping[str, Quality]


@dataclass(frozen=True, slots=True)
class Impossible:
    """A prior that its method cannot make."""

    method: str
    num_clusters: int
    reason: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The results in the order in which they are to be read.

    Attributes
    ----------
    flat : the flat vocabulary, K = V: the bits to compare with, and the tokenizer's own quality
    rows : the methods of one K together, then the priors from files
    provenance : what it was measured on
    config : keys of the stage
    """

    flat: PriorResult
    rows: tuple[PriorResult | Impossible, ...]
    provenance: Mapping[str, JsonValue]
    config: Mapping[str, JsonValue]

    @property
    def priors(self) -> tuple[PriorResult, ...]:
        """The rows that could be made."""
        return tuple(row for row in self.rows if isinstance(row, PriorResult))

    @property
    def impossible(self) -> tuple[Impossible, ...]:
        """The rows that could not."""
        return tuple(row for row in self.rows if isinstance(row, Impossible))


class PriorMeasurement:
    """Measures one prior after the other; the first of each K is what later ones are compared with.

    Parameters
    ----------
    rows : float64 (V, E), the codebook in which distances are taken
    fitted : int64 (V+1, V), pairs of codes that counts and models come from
    test : over the images to measure on
    """

    def __init__(self, rows: NDArray[np.float64], fitted: csr_array, test: ReplacementTest) -> None:
        self._rows, self._fitted, self._test = rows, fitted, test
        self._counts = code_counts(fitted)
        self._held_out = count_pairs(test.codes, len(rows))
        self._usage = code_counts(self._held_out)
        self._firsts: dict[int, Replacements] = {}

    def flat(self) -> PriorResult:
        """The flat vocabulary: every code its own cluster, nothing replaced by anything else."""
        nothing = dict.fromkeys(MODEL_FREE_DECODINGS, self._test.nothing_replaced())
        return self._result("flat", ClusterMap.identity(len(self._rows)), "", nothing, None)

    def measure(
        self,
        method: str,
        prior: ClusterMap,
        file: str,
        after_draw: Callable[[], None] = lambda: None,
    ) -> PriorResult:
        """Measure a prior over the V codes; ``after_draw`` is called after every draw."""
        code_sampler = CodeSampler(prior, self._counts)
        replaced = {
            decoding: self._test.run(code_sampler, decoding, after_draw)
            for decoding in MODEL_FREE_DECODINGS
        }
        first = self._firsts.setdefault(prior.num_clusters, replaced)
        return self._result(method, prior, file, replaced, None if first is replaced else first)

    def _result(
        self,
        method: str,
        prior: ClusterMap,
        file: str,
        replaced: Replacements,
        first: Replacements | None,
    ) -> PriorResult:
        return PriorResult(
            method=method,
            num_clusters=prior.num_clusters,
            file=file,
            sizes=cluster_sizes(prior, self._usage),
            distances=cluster_distances(self._rows, prior, self._usage, self._counts),
            bits=cluster_bits(prior, self._fitted, self._held_out),
            quality={
                decoding: _quality(replaced[decoding], first[decoding] if first else None)
                for decoding in MODEL_FREE_DECODINGS
            },
        )


def _quality(replaced: Replacement, first: Replacement | None) -> Quality:
    return Quality(
        psnr=over_draws(replaced.psnr),
        ssim=over_draws(replaced.ssim),
        psnr_to_reconstruction=over_draws(replaced.psnr_to_reconstruction),
        ssim_to_reconstruction=over_draws(replaced.ssim_to_reconstruction),
        kept=over_draws(replaced.kept),
        psnr_gain=paired_difference(replaced.psnr, first.psnr) if first else None,
        ssim_gain=paired_difference(replaced.ssim, first.ssim) if first else None,
    )
