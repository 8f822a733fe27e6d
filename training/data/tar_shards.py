"""Tar shards in WebDataset's layout.

Members that share a name up to its first dot are a sample: ``0001.jpg`` (or jpeg, png, webp, bmp)
is the image; ``0001.cls`` holds its class, an integer as text, or else ``0001.json`` does as
``{"label": 3}``. Class names are the lines of a ``classes.txt``; without one, classes are called by
their numbers.

The headers are read once, and from then on an image is found by its offset: any order of reading
costs the same. Hence no compressed tars: their members have no offsets.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from masc_core.errors import ArtifactError, ConfigError
from masc_core.io.bounded import open_file, parse_json
from training.data.source import (
    MAX_CLASSES,
    MAX_IMAGE_BYTES,
    SUFFIXES,
    TABLE,
    ImageSource,
    IntArray,
    read_class_table,
)

# Of a member, by its extension: of what holds a label, and of an image.
MAX_BYTES = {"cls": 1 << 10, "json": 1 << 20} | {s[1:]: MAX_IMAGE_BYTES for s in SUFFIXES}
MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class TarShards(ImageSource):
    """The samples of tar shards, in the order of the shards and of their members."""

    root: Path
    shards: tuple[Path, ...]  # the files
    keys: tuple[str, ...]  # each sample's name, without the extension
    labels: IntArray
    shard_of: IntArray  # int64 (N,), index into ``shards``
    offsets: IntArray  # int64 (N,), where in its shard an image's file lies, in bytes
    lengths: IntArray
    class_names: tuple[str, ...]

    @classmethod
    def scan(cls, root: Path, shards: Sequence[Path]) -> TarShards:
        """Index ``shards``; ``root`` is what the user named.

        Raises
        ------
        ArtifactError
            A shard cannot be read, or a sample has no label, two images or an impossible label.
        ConfigError : there is no image
        """
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(_samples_of, shards))
        samples = [sample for part in found for sample in part]
        if not samples:
            raise ConfigError(f"{root}: its tar shards hold no images")
        numbers = [(s.label, s.offset, s.length) for s in samples]
        labels, offsets, lengths = np.array(numbers, np.int64).T.copy()
        shard_of = np.repeat(np.arange(len(found)), [len(part) for part in found])
        names = _class_names(shards[0].parent, int(labels.max()))
        wrong = np.flatnonzero(labels >= len(names))
        if len(wrong):
            where, label = shards[shard_of[wrong[0]]], labels[wrong[0]]
            raise ArtifactError(
                where,
                f"sample {samples[wrong[0]].key!r} has the label {label}, "
                f"but {TABLE} names {len(names)} classes",
            )
        keys = tuple(sample.key for sample in samples)
        return cls(root, tuple(shards), keys, labels, shard_of, offsets, lengths, names)

    def name(self, index: int) -> str:
        """Shard and sample, as ``train-000.tar:0001``."""
        return f"{self.shards[self.shard_of[index]]}:{self.keys[index]}"

    def encoded(self, index: int) -> bytes:
        """Content of an image's file."""
        shard: Path = self.shards[self.shard_of[index]]
        try:
            with open_file(shard) as file:
                file.seek(int(self.offsets[index]))
                return file.read(int(self.lengths[index]))
        except OSError as error:
            raise ArtifactError(shard, f"cannot be read any more ({error})") from error

    def fingerprint(self) -> str:
        """SHA-256 over the samples' names, labels and sizes, in order."""
        digest = hashlib.sha256()
        for row in zip(self.keys, self.labels, self.lengths, strict=True):
            digest.update("{}\t{}\t{}\n".format(*row).encode())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Sample:
    key: str
    label: int
    offset: int
    length: int


@dataclass(slots=True)
class _Parts:
    """Members of a sample as they are met."""

    images: list[tuple[int, int]] = field(default_factory=list)
    labels: dict[str, bytes] = field(default_factory=dict)


def _samples_of(shard: Path) -> list[_Sample]:
    parts: dict[str, _Parts] = {}
    try:
        with open_file(shard) as file:
            for key, extension, offset, length in _members(file):
                sample = parts.setdefault(key, _Parts())
                if length > MAX_BYTES.get(extension, length):
                    raise ArtifactError(shard, f"{key}.{extension} has {length:,} bytes")
                if f".{extension}" in SUFFIXES:
                    sample.images.append((offset, length))
                elif extension in LABEL_READERS:
                    file.seek(offset)
                    sample.labels[extension] = file.read(length)
    except (OSError, tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        raise ArtifactError(shard, f"is no whole, uncompressed tar file ({error})") from error
    return [_finish(shard, key, sample) for key, sample in parts.items() if sample.images]


def _members(file: BinaryIO) -> Iterator[tuple[str, str, int, int]]:
    """Sample, extension, offset and length of each file in a tar, in order."""
    headers: Any = _Headers(file)
    with tarfile.open(fileobj=headers, mode="r:") as archive:
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined] # or else it remembers a million of them
            if member.size < 0:  # the reader would go back, for ever
                raise EOFError(f"{member.name} has {member.size} bytes")
            folder, slash, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            if member.isreg() and stem:
                yield folder + slash + stem, extension.lower(), member.offset_data, member.size
        # The reader takes any bad header for the end, which is a block of zeros.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise EOFError(f"it is cut off or damaged at byte {archive.offset}")


class _Headers:
    """A tar file for its reader, to which a long name may be as long as the file says."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a name in it has {size:,} bytes")
        return self._file.read(size)


def _finish(shard: Path, key: str, parts: _Parts) -> _Sample:
    if len(parts.images) > 1:
        raise ArtifactError(shard, f"sample {key!r} has {len(parts.images)} images")
    for extension, read in LABEL_READERS.items():
        if extension in parts.labels:
            label = read(parts.labels[extension])
            if type(label) is not int or not 0 <= label < MAX_CLASSES:
                raise ArtifactError(shard, f"{key}.{extension} names no class, but {label!r}")
            return _Sample(key, label, *parts.images[0])
    raise ArtifactError(shard, f"sample {key!r} has no label: neither {key}.cls nor {key}.json")


def _read_cls(content: bytes) -> object:
    try:
        return int(content)
    except ValueError:
        return content[:40].decode(errors="replace")


def _read_json(content: bytes) -> object:
    try:
        value = parse_json(content)
    except ValueError:
        return content[:40].decode(errors="replace")
    return value.get("label") if isinstance(value, dict) else value


# The first that a sample has counts: other programs write all sorts of things beside a label.
LABEL_READERS: dict[str, Callable[[bytes], object]] = {"cls": _read_cls, "json": _read_json}


def _class_names(folder: Path, highest: int) -> tuple[str, ...]:
    table = read_class_table(folder)
    if table:
        return tuple(name for _, name in table)
    return tuple(map(str, range(highest + 1)))
