"""Folders of photographs, one folder a class, as arrays.

``root/<class>/<name>.jpg``; classes are the sorted folder names. Where ``root`` or its parent holds
a ``classes.txt`` (folder name, tab, display name), class names come from there.
This module does not know what the images are for.
"""

from __future__ import annotations

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masc_core.errors import ArtifactError, ConfigError
from masc_core.images import center_crop

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images in memory.

    Attributes
    ----------
    pixels : uint8 (N, S, S, 3)
    labels : int64 (N,), index into ``class_names``
    class_names : one display name a class
    skipped : files that could not be read
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """The files of a folder-per-class data set, in the order of their class and name.

    Raises
    ------
    ConfigError
        The folder is missing, has no class folders, or a class folder holds no image.
    """

    root: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]

    @classmethod
    def scan(cls, root: str | os.PathLike[str]) -> ImageFolder:
        """List the images below ``root``."""
        root = Path(root)
        if not root.is_dir():
            raise ConfigError(f"{root}: no such folder of images")
        folders = sorted(p for p in root.iterdir() if p.is_dir())
        if not folders:
            raise ConfigError(f"{root}: no class folders; expected {root}/<class>/<image>")
        files: list[Path] = []
        labels: list[int] = []
        for label, folder in enumerate(folders):
            found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
            if not found:
                raise ConfigError(f"{folder}: a class folder without images")
            files += found
            labels += [label] * len(found)
        names = _display_names(root)
        return cls(
            root, tuple(files), tuple(labels), tuple(names.get(f.name, f.name) for f in folders)
        )

    def spread(self, limit: int) -> NDArray[np.int64]:
        """At most ``limit`` indices, evenly over the data set, so over its classes."""
        count = len(self.files)
        if limit >= count:
            return np.arange(count, dtype=np.int64)
        return np.linspace(0, count - 1, limit).astype(np.int64)

    def fingerprint(self) -> str:
        """SHA-256 over the files' places below the root and their sizes, in order."""
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(f"{path.relative_to(self.root)}\t{path.stat().st_size}\n".encode())
        return digest.hexdigest()

    def read(self, image_size: int, indices: NDArray[np.int64] | None = None) -> LabelledImages:
        """Decode, centre-crop to ``image_size`` and hold in memory; unreadable files are skipped.

        Parameters
        ----------
        image_size : S
        indices : which files, int64 (N,); all by default

        Raises
        ------
        ArtifactError
            Not one of all the files can be read; a part of them may come back empty.
        """
        chosen = np.arange(len(self.files)) if indices is None else indices
        pixels = np.empty((len(chosen), image_size, image_size, 3), np.uint8)

        def decode(row: int) -> bool:
            try:
                with Image.open(self.files[chosen[row]]) as image:
                    pixels[row] = np.asarray(center_crop(image, image_size))
            except (OSError, ValueError, Image.DecompressionBombError):
                return False
            return True

        with ThreadPoolExecutor() as pool:
            ok = np.fromiter(pool.map(decode, range(len(chosen))), bool, len(chosen))
        skipped = tuple(str(self.files[i]) for i in chosen[~ok])
        if not ok.any() and indices is None:
            raise ArtifactError(self.root, "none of its images can be read")
        if skipped:
            logger.warning("skipped %d unreadable images, first %s", len(skipped), skipped[0])
        labels = np.asarray(self.labels, np.int64)[chosen]
        if not ok.all():
            pixels, labels = pixels[ok], labels[ok]
        return LabelledImages(pixels, labels, self.class_names, skipped)


def _display_names(root: Path) -> dict[str, str]:
    for table in (root / "classes.txt", root.parent / "classes.txt"):
        if table.is_file():
            rows = (line.split("\t", 1) for line in table.read_text("utf-8").splitlines())
            return {row[0]: row[1].strip() for row in rows if len(row) == 2}
    return {}
