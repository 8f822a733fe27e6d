"""Find out how a set of images is stored: class folders, tar shards or parquet files.

A path is a folder of class folders (``root/<class>/<name>.jpg``), a folder of ``.tar`` or of
``.parquet`` files, one such file, or a pattern of them: ``train-*.tar``, ``train-{000..146}.tar``,
``{a,b}.parquet``.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masc_core.arrays import IntArray
from masc_core.errors import ConfigError
from training.data.parquet import ParquetImages
from training.data.source import SUFFIXES, ImageSource, read_class_table
from training.data.tar_shards import TarShards

SHARDS = {".tar": TarShards.scan, ".parquet": ParquetImages.scan}
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


def open_images(path: str | os.PathLike[str]) -> ImageSource:
    """Open a set of images, whichever way it is stored.

    Raises
    ------
    ConfigError : nothing is there, or no images, or a mixture; the path is named
    ArtifactError : a file is damaged or not of the layout; it is named
    """
    root = Path(path)
    if root.is_dir():
        files = sorted(p for p in root.iterdir() if p.is_file() and p.suffix in SHARDS)
        if not files:
            return ImageFolder.scan(root)
        if any(is_class_folder(p) for p in root.iterdir()):
            raise ConfigError(
                f"{root}: holds {files[0].name} beside folders; which are the images?"
            )
    elif root.is_file():
        files = [root]
    else:
        files = _matches(root)
    suffixes = {file.suffix for file in files}
    if len(suffixes) > 1:
        raise ConfigError(f"{root}: names files of several kinds: {', '.join(sorted(suffixes))}")
    scan = SHARDS.get(suffixes.pop())
    if scan is None:
        raise ConfigError(f"{root}: no set of images; it may be of class folders, .tar or .parquet")
    return scan(root, files)


def _matches(pattern: Path) -> list[Path]:
    """Files that a pattern names, in the order of their names."""
    names = list(_expand(str(pattern)))
    found: set[Path] = set()
    for name in names:
        matches = glob.glob(name)  # noqa: PTH207 - the pattern may be absolute
        if not matches:
            missing = f"{pattern}: no such folder or file of images"
            raise ConfigError(missing if len(names) == 1 else f"{missing}; {name} is missing")
        found.update(map(Path, matches))
    return sorted(found)


def _expand(pattern: str) -> Iterable[str]:
    """Every name that braces stand for: ``{0..9}`` with as many digits, ``{a,b}``."""
    braces = BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    numbers = RANGE.fullmatch(braces[1])
    if numbers:
        first, last = numbers.groups()
        choices = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
    else:
        choices = braces[1].split(",")
    for choice in choices:
        yield from _expand(pattern[: braces.start()] + choice + pattern[braces.end() :])


@dataclass(frozen=True, slots=True, eq=False)
class ImageFolder(ImageSource):
    """The files of a folder-per-class set, in the order of their class and name.

    Classes are the sorted folder names, which a ``classes.txt`` may translate.
    """

    root: Path
    files: tuple[str, ...]  # each image's place below ``root``
    labels: IntArray
    class_names: tuple[str, ...]

    @classmethod
    def scan(cls, root: str | os.PathLike[str]) -> ImageFolder:
        """List the images below ``root``; a `ConfigError` where a folder has none."""
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
