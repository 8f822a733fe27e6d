"""A set of labelled images, wherever it lies: random access, and whole parts of it as arrays.

An image is handed out as the bytes of its file, so that a set needs no more than where those are.
What cannot be decoded is skipped and named, never an error of its own.

Legend: N images, S pixels a side.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from masc_core.arrays import IntArray
from masc_core.bundle.manifest import check_class_names
from masc_core.errors import ArtifactError, ConfigError
from masc_core.images import UNREADABLE, Pixels, center_crop, to_rgb, upright
from masc_core.io.bounded import decode_text, read_file
from training.changes import listed
from training.config import DEFAULT_IMAGE_OPTIONS, ImageOptions

logger = logging.getLogger(__name__)


# Formats of Pillow that are read, and what their files end with; others run programs, or hold no
# photographs.
SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "JPEG2000": (".jp2",),
    "AVIF": (".avif",),
}
Image.init()
FORMATS = tuple(name for name in SUFFIXES_OF if name in Image.OPEN)  # builds differ
SUFFIXES = frozenset(suffix for name in FORMATS for suffix in SUFFIXES_OF[name])
TABLE = "classes.txt"
MAX_CLASSES = 1_000_000  # beyond, a label is something else
MAX_IMAGE_BYTES = 256 << 20  # of a file
MAX_PIXELS = 100_000_000  # of an image; decoded they take four bytes each, in every thread


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images in memory."""

    pixels: Pixels  # uint8 (N, S, S, 3)
    labels: IntArray  # int64 (N,), index into ``class_names``
    class_names: tuple[str, ...]  # one display name a class
    skipped: tuple[str, ...]  # names of the images that could not be read


class ImageSource(ABC):
    """A set of images; every method may be called from any thread."""

    root: Path  # what the user named
    labels: IntArray  # int64 (N,), index into ``class_names``
    class_names: tuple[str, ...]  # one display name a class
    options: ImageOptions = DEFAULT_IMAGE_OPTIONS

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """Where an image is, for people."""

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """Content of an image's file; an `OSError` where it cannot be had, or is too large."""

    @abstractmethod
    def files_sha256(self) -> str:
        """SHA-256 over what images there are and in which order, not over their pixels."""

    def fingerprint(self) -> str:
        """The same over how they are read, too."""
        options = self.options.exif_orientation, self.options.background_rgb
        return hashlib.sha256(f"{self.files_sha256()}\t{options}".encode()).hexdigest()

    def summary(self) -> dict[str, Any]:
        """What a run stores of the set, so that continuing with another one is refused by name."""
        counts = np.bincount(self.labels, minlength=len(self.class_names)).tolist()
        images = dict(zip(self.class_names, counts, strict=True))
        return {"fingerprint": self.fingerprint(), "images": images}

    def decode(self, index: int) -> Image.Image | None:
        """Decode an image into RGB, or return None where that is not possible."""
        try:
            return self._decode(index)
        except UNREADABLE:
            return None

    def why_unreadable(self, index: int) -> str:
        """An image's name, and why `decode` made nothing of it."""
        try:
            self._decode(index)
        except UNREADABLE as error:
            return f"{self.name(index)} ({printable(_reason(error))})"
        return self.name(index)  # it can be read by now

    def _decode(self, index: int) -> Image.Image:
        content = self.encoded(index)
        if not content:
            raise ValueError("it is empty")
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if math.prod(image.size) > MAX_PIXELS:
                raise ValueError(f"it has {math.prod(image.size):,} pixels")
            held = upright(image) if self.options.exif_orientation else image
            return to_rgb(held, self.options.background_rgb)

    def spread(self, limit: int) -> IntArray:
        """At most ``limit`` indices, evenly over the set, so over classes that stand in order."""
        count = len(self)
        if limit >= count:
            return np.arange(count, dtype=np.int64)
        return np.linspace(0, count - 1, limit).astype(np.int64)

    def read(self, image_size: int, indices: IntArray | None = None) -> LabelledImages:
        """Decode, centre-crop to S pixels and hold in memory; skip what cannot be read.

        Of all images, unless ``indices`` int64 (N,) names some. An `ArtifactError` where not one
        of all can be read; a part of them may come back empty.
        """
        chosen = np.arange(len(self)) if indices is None else indices
        pixels = np.empty((len(chosen), image_size, image_size, 3), np.uint8)

        def fill(row: int) -> bool:
            image = self.decode(int(chosen[row]))
            if image is not None:
                pixels[row] = np.asarray(center_crop(image, image_size))
            return image is not None

        with ThreadPoolExecutor() as pool:
            ok = np.fromiter(pool.map(fill, range(len(chosen))), bool, len(chosen))
        skipped = tuple(self.name(int(i)) for i in chosen[~ok])
        if skipped:
            first = self.why_unreadable(int(chosen[np.argmin(ok)]))
            if not ok.any() and indices is None:
                raise ArtifactError(self.root, f"none of its images can be read, first {first}")
            logger.warning("skipped %d unreadable images, first %s", len(skipped), first)
        labels = self.labels[chosen]
        if not ok.all():
            pixels, labels = pixels[ok], labels[ok]
        return LabelledImages(pixels, labels, self.class_names, skipped)


def _reason(error: BaseException) -> str:
    """One line of why Pillow, or the disk, gave no image."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a format that is read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0] or type(error).__name__


def printable(name: str) -> str:
    """A name with escapes for bytes that are no UTF-8, for people and for JSON."""
    return name.encode(errors="backslashreplace").decode()


def require_classes(source: ImageSource, key: str) -> None:
    """Raise a `ConfigError` where there are no two classes to tell apart; names the key.

    Or where a model could not have classes of these names.
    """
    check_class_names(source.class_names, f"{key}: classes of {printable(str(source.root))}")
    if len(source.class_names) < 2:
        raise ConfigError(
            f"{key}: {source.root} has one class only, {source.class_names[0]!r}; "
            "two are the least that can be told apart"
        )


def numbered_classes(labels: IntArray) -> tuple[IntArray, tuple[str, ...]]:
    """Labels and names of classes that have only numbers: those that occur, in their order."""
    numbers, renumbered = np.unique(labels, return_inverse=True)
    return renumbered.astype(np.int64), tuple(map(str, numbers))


def warn_of_empty_classes(root: Path, labels: IntArray, names: Sequence[str]) -> None:
    """Say which of the classes have no image; they stay, so that other sets have the same."""
    counts = np.bincount(labels, minlength=len(names)).tolist()
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty:
        logger.warning("%s: there are no images of %s", printable(str(root)), listed(empty))


def read_class_table(folder: Path) -> tuple[tuple[str, str], ...]:
    """Key and name of each class, in the order of ``classes.txt``; nothing where there is none.

    One line a class: its key (the name of its folder), a tab, the name to display; or that name
    alone. The file stands in the folder of the images or in the folder above, where it serves
    training and validation images alike.
    """
    for path in (folder / TABLE, folder.parent / TABLE):
        if path.is_file():
            try:
                lines = decode_text(read_file(path)).splitlines()
            except (OSError, ValueError) as error:
                raise ArtifactError(path, f"cannot be read ({error})") from error
            rows = (line.partition("\t") for line in lines if line.strip())
            return tuple((key.strip(), name.strip() or key.strip()) for key, _, name in rows)
    return ()
