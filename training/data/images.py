"""Find out how a set of images is stored: class folders, tar shards or parquet files.

A path is a folder of class folders, a folder of ``.tar`` or of ``.parquet`` files, one such file,
or a pattern of them: ``train-*.tar``, ``train-{000..146}.tar``, ``{a,b}.parquet``.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from masc_core.errors import ConfigError
from training.data.folder import ImageFolder, is_class_folder
from training.data.parquet import ParquetImages
from training.data.source import ImageSource
from training.data.tar_shards import TarShards

SHARDS = {".tar": TarShards.scan, ".parquet": ParquetImages.scan}
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


def open_images(path: str | os.PathLike[str]) -> ImageSource:
    """Open a set of images, whichever way it is stored.

    Raises
    ------
    ConfigError
        Nothing is there, or no images, or a mixture; the path is named.
    ArtifactError
        A file is damaged or not of the layout; it is named.
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
