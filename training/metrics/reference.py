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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masc_core.arrays import IntArray
from masc_core.errors import ArtifactError, ConfigError
from masc_core.images import Pixels
from masc_core.io.files import sha256_file
from masc_core.io.npz import load_npz, save_npz
from masc_core.progress import ProgressCallback
from training.config import DEFAULT_IMAGE_OPTIONS, ImageOptions
from training.data.images import open_images
from training.data.source import ImageSource
from training.metrics.fidelity import MAX_REAL_IMAGES, MIN_IMAGES, Extractor, torch_fidelity
from training.metrics.partial_results import PartialResults

EXTRACTED_AT_ONCE = 100
SAVED_AT_ONCE = 5_000  # images: their features are 40 MB, their sums as much


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean float32 (F,) and covariance float64 (F, F) of features."""

    mu: NDArray[np.float32]
    sigma: NDArray[np.float64]

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """Of features float32 (N, F); a ConfigError where N is below 2."""
        moments = Moments(features.shape[1])
        moments.add(features)
        return moments.statistics()

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


class Moments:
    """Sums that give the statistics of features (N, F), however many there are.

    Attributes
    ----------
    tensors : ``count`` N, ``mean`` (F,), ``products`` (F, F): sums of products of deviations
        from the mean; float64
    """

    def __init__(self, num_features: int) -> None:
        shapes = {"count": (), "mean": (num_features,), "products": (num_features,) * 2}
        self.tensors = {name: torch.zeros(s, dtype=torch.float64) for name, s in shapes.items()}

    def add(self, features: Tensor) -> None:
        """Take more features in, (N, F) with N > 0; Chan et al.'s update, exact in any portions."""
        sums, more = self.tensors, len(features)
        mean = features.double().mean(0)
        centred, shift = features.double() - mean, mean - sums["mean"]
        weight = more / (sums["count"] + more)
        sums["products"] += centred.T @ centred
        sums["products"] += torch.outer(shift, shift) * sums["count"] * weight
        sums["mean"] += shift * weight
        sums["count"] += more

    def statistics(self) -> Statistics:
        """Mean and unbiased covariance; a ConfigError of fewer than two features."""
        count = float(self.tensors["count"])
        if count < 2:
            raise ConfigError("a covariance needs at least two images")
        sigma = self.tensors["products"].numpy() / (count - 1)
        return Statistics(self.tensors["mean"].numpy().astype(np.float32), sigma)


@dataclass(frozen=True, slots=True)
class Reference:
    """Real images by one extractor; ``features`` float32 (N, F) where there are images.

    The statistics are of all images, the features of at most 10,000 of them, evenly spread.
    ``accuracy`` is the share of images whose class a classifier among the extractors tells.
    """

    statistics: Statistics
    features: Tensor | None = None
    accuracy: float | None = None

    @classmethod
    def of(cls, features: Tensor) -> Reference:
        """Of the features of a few images."""
        return cls(Statistics.of(features), features)


@dataclass(frozen=True, slots=True)
class RealImages:
    """Images that are read when features are extracted, cropped to S pixels a side."""

    path: Path
    image_size: int
    images: ImageSource

    def fingerprint(self) -> str:
        """What images they are."""
        return self.images.fingerprint()

    def extract(
        self,
        extractor: Extractor,
        report: ProgressCallback,
        unfinished: PartialResults | None = None,
    ) -> Reference:
        """Features of all that can be read; a ConfigError where they are too few."""
        return _extract(self, extractor, report, unfinished or PartialResults())

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: IntArray) -> tuple[Pixels, IntArray]:
        """Those that can be read, uint8 (N, S, S, 3), and their labels (N,)."""
        read = self.images.read(self.image_size, indices)
        return read.pixels, read.labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the labels."""
        return self.images.class_names


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

    def fingerprint(self) -> str:
        """What file it is."""
        return sha256_file(self.path)

    def extract(
        self,
        extractor: Extractor,
        report: ProgressCallback,
        unfinished: PartialResults | None = None,
    ) -> Reference | None:
        """The statistics and the features of the images; None where neither serves."""
        own = extractor.features_name == self.features_name
        if self.images is None:
            return Reference(self.statistics) if own else None
        found = _extract(self, extractor, report, unfinished or PartialResults())
        return replace(found, statistics=self.statistics) if own else found

    def __len__(self) -> int:
        return 0 if self.images is None else len(self.images)

    class_names = ()  # the images have none

    def read(self, indices: IntArray) -> tuple[Pixels, IntArray]:
        """Some of the images, where there are any; nothing labels them."""
        found = np.empty(0, np.uint8) if self.images is None else self.images[indices]
        return found, np.zeros(len(found), np.int64)

    def check(self, extractors: Sequence[Extractor]) -> None:
        """Raise unless an extractor can use it, with the same number of features."""
        if self.images is not None:
            _require_images(self.path, len(self.images))
        elif self.features_name not in {extractor.features_name for extractor in extractors}:
            raise ConfigError(
                f"reference: {self.path} has statistics of {self.features_name} features, which no "
                "extractor that was asked for computes"
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
    options: ImageOptions = DEFAULT_IMAGE_OPTIONS,
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


def _extract(
    real: RealImages | RealStatistics,
    extractor: Extractor,
    report: ProgressCallback,
    unfinished: PartialResults,
) -> Reference:
    """Go through all images, with some of them in memory at a time; save what there is."""
    name, total = f"reference-{extractor.label}", len(real)
    moments = Moments(extractor.num_features)
    class_ids = None if extractor.class_names is None else _ids(real, extractor.class_names)
    features, seen, agreed = [torch.empty(0, extractor.num_features)], 0, 0
    if (begun := unfinished.load(name)) is not None:
        features, seen = [begun.pop("features")], int(begun.pop("seen"))
        agreed = int(begun.pop("agreed", torch.tensor(0)))  # evaluations begun before have none
        moments.tensors = begun
    kept = np.linspace(0, total - 1, min(total, MAX_REAL_IMAGES)).astype(np.int64)
    for start in range(seen, total, EXTRACTED_AT_ONCE):
        indices = np.arange(start, min(start + EXTRACTED_AT_ONCE, total))
        pixels, labels = real.read(indices)
        if len(pixels):
            (more, logits), count = extractor(pixels), int(moments.tensors["count"])
            if class_ids is not None and logits is not None:
                agreed += int((logits.argmax(1).numpy() == class_ids[labels]).sum())
            numbers = np.arange(count, count + len(more))
            features.append(more[torch.from_numpy(np.isin(numbers, kept))])
            moments.add(more)
        seen = start + len(indices)
        if seen == total or seen % SAVED_AT_ONCE == 0:
            features = [torch.cat(features)]
            state = {"features": features[0], "seen": torch.tensor(seen)}
            state |= {"agreed": torch.tensor(agreed), **moments.tensors}
            unfinished.save(name, state)
        report(seen, total, f"{extractor.label} of {real.path}")
    count = int(moments.tensors["count"])
    _require_images(real.path, count)
    accuracy = None if class_ids is None else agreed / count
    return Reference(moments.statistics(), features[0], accuracy)


def _ids(real: RealImages | RealStatistics, class_names: tuple[str, ...]) -> IntArray | None:
    """Index of each class of the images among others; None where one is not there."""
    known = {name: i for i, name in enumerate(class_names)}
    ids = [known.get(name, -1) for name in real.class_names]
    return np.array(ids) if ids and min(ids) >= 0 else None


def _require_images(path: Path, count: int) -> None:
    if count < MIN_IMAGES:
        raise ConfigError(f"reference: {path} needs at least {MIN_IMAGES} images, and has {count}")
