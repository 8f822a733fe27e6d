"""Find out how a set of images is stored: class folders, tar shards or parquet files.

A path is a folder of class folders (``root/<class>/<name>.jpg``), a folder of ``.tar`` or of
``.parquet`` files, one such file, or a pattern of them: ``train-*.tar``, ``train-{000..146}.tar``,
``{a,b}.parquet``. Behind a ``#`` the columns of parquet files may be named:
``train.parquet#image=img&label=fine_label``.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import filterfalse
from pathlib import Path

import numpy as np

from masc_core.arrays import IntArray
from masc_core.errors import ConfigError
from masc_core.io.bounded import read_file
from training.changes import listed
from training.config import DEFAULT_IMAGE_OPTIONS, ImageOptions
from training.data.parquet import ParquetImages
from training.data.source import (
    MAX_IMAGE_BYTES,
    SUFFIXES,
    TABLE,
    ImageSource,
    printable,
    read_class_table,
    warn_of_empty_classes,
)
from training.data.tar_shards import TarShards

logger = logging.getLogger(__name__)

SHARDS = (".tar", ".parquet")
COMPRESSED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst", ".zip")
COLUMNS = ("image", "label")  # of parquet files, that a path may name
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")


def open_images(
    path: str | os.PathLike[str], options: ImageOptions = DEFAULT_IMAGE_OPTIONS
) -> ImageSource:
    """Open a set of images, whichever way it is stored, to be read with these options.

    Raises
    ------
    ConfigError : nothing is there, or no images, or a mixture; the path is named
    ArtifactError : a file is damaged or not of the layout; it is named
    """
    return replace(_open(path), options=options)


def _open(path: str | os.PathLike[str]) -> ImageFolder | TarShards | ParquetImages:
    root, columns = _split_columns(Path(path))
    if root.is_dir():
        files = sorted(
            p
            for p in root.iterdir()
            if p.suffix.lower() in SHARDS and p.is_file() and not _is_hidden(p.name)
        )
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
    suffixes = {file.suffix.lower() for file in files}
    if len(suffixes) > 1:
        raise ConfigError(f"{root}: names files of several kinds: {', '.join(sorted(suffixes))}")
    suffix = suffixes.pop()
    if suffix == ".parquet":
        return ParquetImages.scan(root, files, **columns)
    if columns:
        raise ConfigError(f"{path}: only parquet files have columns")
    if suffix == ".tar":
        return TarShards.scan(root, files)
    if files[0].name.lower().endswith(COMPRESSED):
        raise ConfigError(f"{files[0]}: is compressed; unpack it to a .tar or to class folders")
    raise ConfigError(f"{root}: no set of images; it may be of class folders, .tar or .parquet")


def _split_columns(path: Path) -> tuple[Path, dict[str, str]]:
    """A path, and the columns that it names behind a ``#``."""
    head, hash_sign, tail = str(path).rpartition("#")
    if not hash_sign or path.exists():
        return path, {}
    columns = dict(part.partition("=")[::2] for part in tail.split("&"))
    if not columns.keys() <= set(COLUMNS) or not all(columns.values()):
        raise ConfigError(f"{path}: behind the # stands image=NAME, label=NAME, or both with a &")
    return Path(head), columns


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

    Classes are the sorted folder names, which a ``classes.txt`` may translate; folders within
    belong to their class. What is no image is counted in the log; hidden files are of no concern.
    """

    root: Path
    files: tuple[str, ...]  # each image's place below ``root``
    labels: IntArray
    class_names: tuple[str, ...]
    options: ImageOptions = DEFAULT_IMAGE_OPTIONS

    @classmethod
    def scan(cls, root: str | os.PathLike[str]) -> ImageFolder:
        """List the images below ``root``; a `ConfigError` where a folder has none."""
        root = Path(root)
        if not root.is_dir():
            raise ConfigError(f"{root}: no such folder of images")
        folders = sorted(path.name for path in root.iterdir() if is_class_folder(path))
        if not folders:
            packed = [p for p in root.iterdir() if p.name.lower().endswith(COMPRESSED)]
            hint = f"; {packed[0].name} is compressed" if packed else ""
            raise ConfigError(f"{root}: no class folders; expected {root}/<class>/<image>{hint}")
        files: list[str] = []
        sizes: list[int] = []
        others: Counter[str] = Counter()
        for folder in folders:
            found = _images_in(root / folder, others)
            files += (f"{folder}/{name}" for name in found)
            sizes.append(len(found))
        others.update(
            f"{path.suffix} beside the class folders"
            for path in root.iterdir()
            if path.suffix.lower() in SUFFIXES and path.is_file()
        )
        if others:
            kinds = sorted(others.items(), key=lambda item: (-item[1], item[0]))
            told = ", ".join(f"{count} {printable(kind)}" for kind, count in kinds)
            where = printable(str(root))
            logger.warning("%s: %d files are left out: %s", where, others.total(), told)
        names = dict(read_class_table(root))
        labels = np.repeat(np.arange(len(folders), dtype=np.int64), sizes)
        class_names = tuple(printable(names.get(folder, folder)) for folder in folders)
        if not files:
            raise ConfigError(f"{root}: its class folders hold no images")
        if all(file.count("/") > 1 for file in files):
            raise ConfigError(
                f"{root}: no image lies in a class folder, all are deeper; is {root / folders[0]} "
                "the set of images?"
            )
        warn_of_empty_classes(root, labels, class_names)
        unnamed = [folder for folder in folders if folder not in names]
        if names and unnamed:
            where, which = printable(str(root)), listed(unnamed)
            logger.warning("%s: %s gives no names to the folders %s", where, TABLE, which)
        return cls(root, tuple(files), labels, class_names)

    def name(self, index: int) -> str:
        """Path of an image."""
        return printable(str(self.root / self.files[index]))

    def encoded(self, index: int) -> bytes:
        """Content of an image's file."""
        return read_file(self.root / self.files[index], MAX_IMAGE_BYTES)

    def files_sha256(self) -> str:
        """SHA-256 over the files' places below the root and their sizes, in order."""
        digest = hashlib.sha256()
        for file in self.files:
            try:
                size = (self.root / file).stat().st_size
            except OSError:  # a link to nothing, which is skipped when it is read
                size = -1
            digest.update(f"{file}\t{size}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


def is_class_folder(path: Path) -> bool:
    """Whether a path is a folder, and none that file managers, notebooks and archives make."""
    return path.is_dir() and not _is_hidden(path.name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _images_in(folder: Path, others: Counter[str]) -> list[str]:
    """Places of the images below a folder, sorted; other files are counted by their suffix."""
    found: list[str] = []
    entered = set[str]()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in entered:  # a link has led back up
            folders.clear()
            continue
        entered.add(real)
        folders[:] = filterfalse(_is_hidden, folders)
        below = os.path.relpath(place, folder)
        for name in filterfalse(_is_hidden, files):
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a million names
            if suffix in SUFFIXES:
                found.append(name if below == "." else f"{below}/{name}")
            else:
                others[suffix or "without a suffix"] += 1
    return sorted(found)
