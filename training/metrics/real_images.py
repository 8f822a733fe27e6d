"""Real images, or what a file says of them, as extractors see them.

Images serve every extractor. A file of statistics serves the one whose features they are of; the
images in it, where there are any, serve the others.

Legend: N images, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masc_core.errors import ConfigError
from training.data.images import open_images
from training.data.source import ImageSource
from training.loop.progress import Report
from training.metrics.fidelity import MIN_IMAGES, Extractor
from training.metrics.reference import Reference, StatisticsFile, read_statistics

EXTRACTED_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class RealImages:
    """Images that are read when they are looked at, cropped to S pixels a side."""

    path: Path
    image_size: int
    images: ImageSource

    def seen_by(self, extractor: Extractor, report: Report) -> Reference:
        """Features of all that can be read.

        Raises
        ------
        ConfigError
            Too few of them can.
        """
        features = _extract(extractor, self._batches(extractor, report))
        _require_images(self.path, len(features))
        return Reference.of(features)

    def _batches(self, extractor: Extractor, report: Report) -> Iterator[NDArray[np.uint8]]:
        total = len(self.images)
        for start in range(0, total, EXTRACTED_AT_ONCE):
            places = np.arange(start, min(start + EXTRACTED_AT_ONCE, total))
            yield self.images.read(self.image_size, places).pixels
            report(start + len(places), total, f"{extractor.label} of {self.path}")


@dataclass(frozen=True, slots=True)
class RealStatistics:
    """A file of statistics."""

    path: Path
    file: StatisticsFile

    def seen_by(self, extractor: Extractor, report: Report) -> Reference | None:
        """The statistics and the features of the images; None where neither serves."""
        images, own = self.file.images, extractor.features_name == self.file.features_name
        if images is None:
            return Reference(self.file.statistics) if own else None
        report(0, len(images), f"{extractor.label} of {self.path}")
        starts = range(0, len(images), EXTRACTED_AT_ONCE)
        features = _extract(extractor, (images[i : i + EXTRACTED_AT_ONCE] for i in starts))
        return Reference(self.file.statistics, features) if own else Reference.of(features)


def open_real(
    path: Path, image_size: int, extractors: Sequence[Extractor]
) -> RealImages | RealStatistics:
    """What is at a path, for extractors to see.

    Raises
    ------
    ArtifactError
        An ``.npz`` is damaged, or holds no statistics.
    ConfigError
        There are few images or none, or statistics that none of the extractors can use.
    """
    if path.is_file() and path.suffix == ".npz":
        real = RealStatistics(path, read_statistics(path))
        _check(real, extractors)
        return real
    images = open_images(path)
    _require_images(path, len(images))
    return RealImages(path, image_size, images)


def _check(real: RealStatistics, extractors: Sequence[Extractor]) -> None:
    name, found = real.file.features_name, len(real.file.statistics.mu)
    if real.file.images is not None:
        _require_images(real.path, len(real.file.images))
    elif name not in {extractor.features_name for extractor in extractors}:
        raise ConfigError(f"reference: {real.path} is of features that nothing gives: {name}")
    for extractor in extractors:
        if extractor.features_name == name and extractor.num_features != found:
            raise ConfigError(
                f"reference: {real.path} has {found} features, {extractor.label} "
                f"has {extractor.num_features}"
            )


def _extract(extractor: Extractor, batches: Iterator[NDArray[np.uint8]]) -> Tensor:
    parts = [extractor(pixels)[0] for pixels in batches if len(pixels)]
    return torch.cat(parts) if parts else torch.empty(0, 0)


def _require_images(path: Path, count: int) -> None:
    if count < MIN_IMAGES:
        raise ConfigError(f"reference: {path} needs at least {MIN_IMAGES} images, and has {count}")
