"""What a comparison of priors found, in plain numbers.

Legend: V codes, K clusters, L positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from training.metrics.cluster_bits import ClusterBits
from training.metrics.cluster_statistics import ClusterDistances, ClusterSizes
from training.metrics.semantic_replacement import Estimate


@dataclass(frozen=True, slots=True)
class Quality:
    """Means of the Semantic Replacement Test under one decoding.

    Attributes
    ----------
    psnr, ssim : against the original; the standard errors are those of the draws
    psnr_to_reconstruction, ssim_to_reconstruction : against the tokenizer's reconstruction
    kept : share of the codes that were replaced by themselves
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
