"""Everything that is measured of a prior, on one set of images, against one fitted stream of codes.

Legend: V codes, K clusters, E code dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from masc_core.prior import ClusterMap
from masc_core.sampling.in_cluster import MODES, InClusterDecoder
from training.metrics.cluster_bits import cluster_bits
from training.metrics.cluster_statistics import cluster_distances, cluster_sizes
from training.metrics.code_pairs import code_counts, count_pairs
from training.metrics.comparison import PriorResult, Quality
from training.metrics.semantic_replacement import (
    Replacement,
    ReplacementTest,
    over_draws,
    paired_difference,
)

Replacements = Mapping[str, Replacement]  # by decoding


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
        nothing = dict.fromkeys(MODES, self._test.nothing_replaced())
        return self._result("flat", ClusterMap.identity(len(self._rows)), "", nothing, None)

    def measure(
        self,
        method: str,
        prior: ClusterMap,
        file: str,
        after_draw: Callable[[], None] = lambda: None,
    ) -> PriorResult:
        """Measure a prior.

        Parameters
        ----------
        method, file : as `training.metrics.comparison.PriorResult` names them
        prior : over the V codes
        after_draw : called after every draw of every decoding
        """
        decoder = InClusterDecoder(prior, self._counts)
        replaced = {mode: self._test.run(decoder, mode, after_draw) for mode in MODES}
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
                mode: _quality(replaced[mode], first[mode] if first else None) for mode in MODES
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
