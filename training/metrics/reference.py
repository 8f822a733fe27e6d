"""What generated images are compared with: features of real ones, or their statistics alone.

The statistics of an extractor are the mean and the covariance of its features; they are enough for
the Fréchet distance, ``|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))``. Kernel distance, precision and
recall need the features. Files are ``.npz`` with ``mu`` (F,) and ``sigma`` (F, F), our own and the
ADM evaluator's, which has images (``arr_0``) as well.

Heusel et al.: GANs Trained by a Two Time-Scale Update Rule. NeurIPS 2017.

A file of ours names the features it is of; one without a name is taken for Inception's. It serves
the extractor of those features; the images in it, where there are any, serve the others. Images
serve every extractor.

Legend: N images, S pixels a side, F features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masc_core.errors import ArtifactError, ConfigError
from masc_core.images import Pixels
from masc_core.io.npz import load_npz, save_npz
from masc_core.progress import ProgressCallback
from training.config import AS_VIEWED, ImageOptions
from training.data.images import open_images
from training.data.source import ImageSource
from training.metrics.fidelity import MIN_IMAGES, Extractor, torch_fidelity

EXTRACTED_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean float32 (F,) and covariance float64 (F, F) of features."""

    mu: NDArray[np.float32]
    sigma: NDArray[np.float64]

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """Of features float32 (N, F); a ConfigError where N is below 2."""
        if len(features) < 2:
            raise ConfigError("a covariance needs at least two images")
        moments = torch_fidelity("metric_fid").fid_features_to_statistics(features)
        return cls(moments["mu"], moments["sigma"])

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
    """Real images by one extractor; ``features`` float32 (N, F) where there are images."""

    statistics: Statistics
    features: Tensor | None = None

    @classmethod
    def of(cls, features: Tensor) -> Reference:
        """Of the features of images."""
        return cls(Statistics.of(features), features)


@dataclass(frozen=True, slots=True)
class RealImages:
    """Images that are read when features are extracted, cropped to S pixels a side."""

    path: Path
    image_size: int
    images: ImageSource

    def extract(self, extractor: Extractor, report: ProgressCallback) -> Reference:
        """Features of all that can be read; a ConfigError where they are too few."""
        features = _extract(extractor, self._batches(extractor, report))
        _require_images(self.path, len(features))
        return Reference.of(features)

    def _batches(self, extractor: Extractor, report: ProgressCallback) -> Iterator[Pixels]:
        total = len(self.images)
        for start in range(0, total, EXTRACTED_AT_ONCE):
            indices = np.arange(start, min(start + EXTRACTED_AT_ONCE, total))
            yield self.images.read(self.image_size, indices).pixels
            report(start + len(indices), total, f"{extractor.label} of {self.path}")


MAX_BYTES = 8 << 30  # of an array: ten thousand images of 512 pixels a side


@dataclass(frozen=True, slots=True)
class RealStatistics:
    """What a file holds.

    Attributes
    ----------
    path : of the file
    statistics : mean and covariance
    features_name : of which features
    images : uint8 (N, S, S, 3), some of the real ones; None where there are none
    """

    path: Path
    statistics: Statistics
    features_name: str
    images: Pixels | None = None

    @classmethod
    def open(cls, path: Path) -> RealStatistics:
        """Read a file; an ArtifactError where it is missing, damaged, or holds no statistics."""
        try:
            arrays = load_npz(
                path, ("mu", "sigma"), optional=("arr_0", "features"), max_bytes=MAX_BYTES
            )
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
        return cls(path, statistics, str(arrays.get("features", "inception")), images)

    def extract(self, extractor: Extractor, report: ProgressCallback) -> Reference | None:
        """The statistics and the features of the images; None where neither serves."""
        images, own = self.images, extractor.features_name == self.features_name
        if images is None:
            return Reference(self.statistics) if own else None
        report(0, len(images), f"{extractor.label} of {self.path}")
        starts = range(0, len(images), EXTRACTED_AT_ONCE)
        features = _extract(extractor, (images[i : i + EXTRACTED_AT_ONCE] for i in starts))
        return Reference(self.statistics, features) if own else Reference.of(features)

    def check(self, extractors: Sequence[Extractor]) -> None:
        """Raise unless one of the extractors can use it, and those of its features have as many."""
        if self.images is not None:
            _require_images(self.path, len(self.images))
        elif self.features_name not in {extractor.features_name for extractor in extractors}:
            raise ConfigError(
                f"reference: {self.path} is of features that nothing gives: {self.features_name}"
            )
        num_features = len(self.statistics.mu)
        for extractor in extractors:
            if (
                extractor.features_name == self.features_name
                and extractor.num_features != num_features
            ):
                raise ConfigError(
                    f"reference: {self.path} has {num_features} features, {extractor.label} "
                    f"has {extractor.num_features}"
                )


def open_real(
    path: Path,
    image_size: int,
    extractors: Sequence[Extractor],
    options: ImageOptions = AS_VIEWED,
) -> RealImages | RealStatistics:
    """What is at a path, for extractors; the options are of images.

    Raises
    ------
    ArtifactError
        An ``.npz`` is damaged, or holds no statistics.
    ConfigError
        There are few images or none, or statistics that none of the extractors can use.
    """
    if path.is_file() and path.suffix == ".npz":
        statistics = RealStatistics.open(path)
        statistics.check(extractors)
        return statistics
    images = open_images(path, options)
    _require_images(path, len(images))
    return RealImages(path, image_size, images)


def _extract(extractor: Extractor, batches: Iterator[Pixels]) -> Tensor:
    parts = [extractor(pixels)[0] for pixels in batches if len(pixels)]
    return torch.cat(parts) if parts else torch.empty(0, 0)


def _require_images(path: Path, count: int) -> None:
    if count < MIN_IMAGES:
        raise ConfigError(f"reference: {path} needs at least {MIN_IMAGES} images, and has {count}")
