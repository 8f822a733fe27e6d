"""What generated images are compared with: features of real ones, or their statistics alone.

The statistics of an extractor are the mean and the covariance of its features; they are enough for
the Fréchet distance, ``|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))``. Kernel distance, precision and
recall need the features. Files are ``.npz`` with ``mu`` (F,) and ``sigma`` (F, F), our own and the
ADM evaluator's, which has images (``arr_0``) as well.

Heusel et al.: GANs Trained by a Two Time-Scale Update Rule. NeurIPS 2017.

A file of ours names the features it is of; one without a name is taken for Inception's.

Legend: N images, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from masc_core.errors import ArtifactError, ConfigError
from masc_core.io.npz import load_npz, save_npz
from training.metrics.fidelity import torch_fidelity


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean float32 (F,) and covariance float64 (F, F) of features."""

    mu: NDArray[np.float32]
    sigma: NDArray[np.float64]

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """Of features float32 (N, F), N at least 2.

        Raises
        ------
        ConfigError
            There are fewer than two images.
        """
        if len(features) < 2:
            raise ConfigError("a covariance needs at least two images")
        found = torch_fidelity("metric_fid").fid_features_to_statistics(features)
        return cls(found["mu"], found["sigma"])

    def distance(self, other: Statistics) -> float:
        """Fréchet distance; 0 between equal ones, up to rounding.

        Raises
        ------
        ConfigError
            They are of different numbers of features.
        """
        if len(self.mu) != len(other.mu):
            raise ConfigError(
                f"statistics of {len(other.mu)} features cannot be compared with {len(self.mu)}"
            )
        pair: list[dict[str, Any]] = [{"mu": s.mu, "sigma": s.sigma} for s in (self, other)]
        metric = torch_fidelity("metric_fid").fid_statistics_to_metric(*pair, verbose=False)
        return float(metric["frechet_inception_distance"])

    def save(self, path: Path, features_name: str) -> None:
        """Write ``mu``, ``sigma`` and the name of their features."""
        save_npz(path, mu=self.mu, sigma=self.sigma, features=np.array(features_name))


@dataclass(frozen=True, slots=True)
class Reference:
    """Real images as an extractor sees them; ``features`` float32 (N, F) where there are images."""

    statistics: Statistics
    features: Tensor | None = None

    @classmethod
    def of(cls, features: Tensor) -> Reference:
        """Of the features of images."""
        return cls(Statistics.of(features), features)


@dataclass(frozen=True, slots=True)
class StatisticsFile:
    """What a file holds.

    Attributes
    ----------
    statistics : mean and covariance
    features_name : of which features
    images : uint8 (N, S, S, 3), some of the real ones; None where there are none
    """

    statistics: Statistics
    features_name: str
    images: NDArray[np.uint8] | None = None


def read_statistics(path: Path) -> StatisticsFile:
    """Read a file of statistics.

    Raises
    ------
    ArtifactError
        The file is missing, damaged, or holds no statistics.
    """
    try:
        arrays = load_npz(path, ("mu", "sigma"), optional=("arr_0", "features"))
    except ArtifactError as error:
        reason = f"holds no statistics of features ({error.reason})"
        raise ArtifactError(path, reason) from error
    mu, sigma, images = arrays["mu"], arrays["sigma"], arrays.get("arr_0")
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ArtifactError(path, f"holds mu {mu.shape} and sigma {sigma.shape}")
    if any(a.dtype.kind != "f" or not np.isfinite(a).all() for a in (mu, sigma)):
        raise ArtifactError(path, "holds statistics that are no finite numbers")
    if images is not None and (images.dtype != np.uint8 or images.ndim != 4):
        raise ArtifactError(path, f"holds images {images.dtype} {images.shape}")
    statistics = Statistics(mu.astype(np.float32), sigma.astype(np.float64))
    return StatisticsFile(statistics, str(arrays.get("features", "inception")), images)
