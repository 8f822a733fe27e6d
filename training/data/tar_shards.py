"""Tar shards in WebDataset's layout.

Members that share a name up to its first dot are a sample: ``0001.jpg`` (or another image) is the
image, ``0001.image.jpg`` where there is no such; ``0001.cls`` holds its class, an integer as text,
or else ``0001.json`` does as ``{"label": 3}``. Class names are the lines of a ``classes.txt``;
without one, the classes that occur are called by their numbers.

The headers are read once, and from then on an image is found by its offset: any order of reading
costs the same. Hence no compressed tars: their members have no offsets.
"""

from __future__ import annotations

import hashlib
import logging
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from masc_core.arrays import IntArray
from masc_core.errors import ArtifactError, ConfigError
from masc_core.io.bounded import decode_text, open_file, parse_json
from training.changes import listed
from training.config import DEFAULT_IMAGE_OPTIONS, ImageOptions
from training.data.source import (
    MAX_CLASSES,
    MAX_IMAGE_BYTES,
    SUFFIXES,
    TABLE,
    ImageSource,
    numbered_classes,
    printable,
    read_class_table,
    warn_of_empty_classes,
)

logger = logging.getLogger(__name__)

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
    options: ImageOptions = DEFAULT_IMAGE_OPTIONS

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
            found, left_out = zip(*pool.map(_samples_of, shards), strict=True)
        samples = [sample for part in found for sample in part]
        if not samples:
            raise ConfigError(f"{root}: its tar shards hold no images")
        names_left_out = [
            f"{shard}:{key}" for shard, keys in zip(shards, left_out, strict=True) for key in keys
        ]
        if names_left_out:
            logger.warning(
                "%d samples have no image and are left out: %s (a sample's name ends at the first "
                "dot, and a link is no image)", len(names_left_out), listed(names_left_out),
            )  # fmt: skip
        numbers = [(s.label, s.offset, s.length) for s in samples]
        labels, offsets, lengths = np.array(numbers, np.int64).T.copy()
        shard_of = np.repeat(np.arange(len(found)), [len(part) for part in found])
        names = tuple(name for _, name in read_class_table(shards[0].parent))
        if not names:
            labels, names = numbered_classes(labels)
        wrong = np.flatnonzero(labels >= len(names))
        if len(wrong):
            where, label = shards[shard_of[wrong[0]]], labels[wrong[0]]
            raise ArtifactError(
                where,
                f"sample {samples[wrong[0]].key!r} has the label {label}, "
                f"but {TABLE} names {len(names)} classes",
            )
        warn_of_empty_classes(root, labels, names)
        keys = tuple(sample.key for sample in samples)
        return cls(root, tuple(shards), keys, labels, shard_of, offsets, lengths, names)

    def name(self, index: int) -> str:
        """Shard and sample, as ``train-000.tar:0001``."""
        return printable(f"{self.shards[self.shard_of[index]]}:{self.keys[index]}")

    def encoded(self, index: int) -> bytes:
        """Content of an image's file."""
        shard: Path = self.shards[self.shard_of[index]]
        try:
            with open_file(shard) as file:
                file.seek(int(self.offsets[index]))
                return file.read(int(self.lengths[index]))
        except OSError as error:
            raise ArtifactError(shard, f"cannot be read any more ({error})") from error

    def files_sha256(self) -> str:
        """SHA-256 over the samples' names, labels and sizes, in order."""
        digest = hashlib.sha256()
        for row in zip(self.keys, self.labels, self.lengths, strict=True):
            digest.update("{}\t{}\t{}\n".format(*row).encode(errors="surrogateescape"))
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
    nested: list[tuple[int, int]] = field(default_factory=list)  # as in ``0001.image.jpg``
    labels: dict[str, bytes] = field(default_factory=dict)  # by extension


def _samples_of(shard: Path) -> tuple[list[_Sample], list[str]]:
    """Samples of a shard, and the keys of those that have no image."""
    parts: dict[str, _Parts] = {}
    try:
        with open_file(shard) as file:
            for key, extension, offset, length in _members(file):
                sample = parts.setdefault(key, _Parts())
                kind = extension.rpartition(".")[2]
                if length > MAX_BYTES.get(kind, length):
                    raise ArtifactError(shard, f"{printable(key)}.{extension} has {length:,} bytes")
                if f".{kind}" in SUFFIXES:
                    (sample.images if kind == extension else sample.nested).append((offset, length))
                elif kind in LABEL_READERS:
                    file.seek(offset)
                    content = file.read(length)
                    if sample.labels.setdefault(extension, content) != content:
                        raise ArtifactError(
                            shard, f"{printable(key)}.{extension} is in it twice, and differs"
                        )
    except (OSError, tarfile.TarError, EOFError, ValueError, RecursionError) as error:
        raise ArtifactError(shard, f"is no whole, uncompressed tar file ({error})") from error
    samples = [
        _finish(shard, key, sample)
        for key, sample in parts.items()
        if sample.images or sample.nested
    ]
    return samples, [key for key, one in parts.items() if not (one.images or one.nested)]


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
            if member.isdir() or not stem or "__MACOSX" in folder.split("/"):
                continue
            # A link has no content of its own, and so no image.
            known = extension.lower() if member.isreg() else ""
            yield folder + slash + stem, known, member.offset_data, member.size
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
    images = parts.images or parts.nested
    if len(images) > 1:
        reason = f"sample {key!r} has {len(images)} images; its name ends at its first dot"
        raise ArtifactError(shard, reason)
    for kind, read in LABEL_READERS.items():
        fitting = sorted((e for e in parts.labels if e.rpartition(".")[2] == kind), key=len)
        if fitting[1:] and fitting[0] != kind:
            several = ", ".join(fitting)
            raise ArtifactError(shard, f"sample {key!r} has several labels: {several}; which?")
        if fitting:
            extension = fitting[0]
            try:
                label = read(parts.labels[extension])
            except ValueError as error:
                raise ArtifactError(shard, f"{key}.{extension}: {error}") from error
            if type(label) is not int or not 0 <= label < MAX_CLASSES:
                raise ArtifactError(shard, f"{key}.{extension} names no class, but {label!r}")
            return _Sample(key, label, *images[0])
    raise ArtifactError(shard, f"sample {key!r} has no label: neither {key}.cls nor {key}.json")


def _read_cls(content: bytes) -> object:
    text = decode_text(content).strip()
    try:
        return int(text)
    except ValueError:
        return text[:40]


def _read_json(content: bytes) -> object:
    try:
        value = parse_json(content)
    except ValueError:
        return content[:40].decode(errors="replace")
    return value.get("label") if isinstance(value, dict) else value


# The first that a sample has counts: other programs write all sorts of things beside a label.
LABEL_READERS: dict[str, Callable[[bytes], object]] = {"cls": _read_cls, "json": _read_json}
