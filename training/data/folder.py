"""Folders of photographs, one folder a class.

``root/<class>/<name>.jpg``; classes are the sorted folder names, which a ``classes.txt`` may
translate.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masc_core.errors import ConfigError
from training.data.class_table import read_class_table
from training.data.source import SUFFIXES, ImageSource, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class ImageFolder(ImageSource):
    """The files of a folder-per-class set, in the order of their class and name.

    Attributes
    ----------
    files : each image's place below ``root``
    """

    root: Path
    files: tuple[str, ...]
    labels: IntArray
    class_names: tuple[str, ...]

    @classmethod
    def scan(cls, root: str | os.PathLike[str]) -> ImageFolder:
        """List the images below ``root``.

        Raises
        ------
        ConfigError
            The folder is missing, has no class folders, or a class folder holds no image.
        """
        root = Path(root)
        if not root.is_dir():
            raise ConfigError(f"{root}: no such folder of images")
        folders = sorted(path.name for path in root.iterdir() if is_class_folder(path))
        if not folders:
            raise ConfigError(f"{root}: no class folders; expected {root}/<class>/<image>")
        files: list[str] = []
        sizes: list[int] = []
        for folder in folders:
            found = _images_in(root / folder)
            files += (f"{folder}/{name}" for name in found)
            sizes.append(len(found))
        names = dict(read_class_table(root))
        labels = np.repeat(np.arange(len(folders), dtype=np.int64), sizes)
        return cls(root, tuple(files), labels, tuple(names.get(f, f) for f in folders))

    def name(self, index: int) -> str:
        """Path of an image."""
        return str(self.root / self.files[index])

    def encoded(self, index: int) -> bytes:
        """Content of an image's file."""
        return (self.root / self.files[index]).read_bytes()

    def fingerprint(self) -> str:
        """SHA-256 over the files' places below the root and their sizes, in order."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file}\t{(self.root / file).stat().st_size}\n".encode())
        return digest.hexdigest()


def is_class_folder(path: Path) -> bool:
    """Whether a path is a folder, and not a hidden one as file managers and notebooks make."""
    return path.is_dir() and not path.name.startswith(".")


def _images_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        found = [e.name for e in entries if os.path.splitext(e.name)[1].lower() in SUFFIXES]  # noqa: PTH122 - a million names
    if not found:
        raise ConfigError(f"{folder}: a class folder without images")
    return sorted(found)
