"""Parquet files of encoded images and labels, as Hugging Face's ``datasets`` writes them.

A column of structs ``{bytes, path}``, or of the bytes alone, holds the images, an integer one the
labels. Which ones, unless the user says so, and what the classes are called, is in the schema's
metadata; without it, the columns are ``image`` and ``label``, and the classes are the lines of a
``classes.txt``, or those that occur, called by their numbers.

Images are read by row groups, of which the last ones are kept, up to `KEPT_BYTES`. So order is
cheap, and a set of that size; for an arbitrary order of a larger one a whole group (as written,
100 to 1,000 images) is read for each image: tar shards serve it better.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from masc_core.arrays import IntArray
from masc_core.errors import ArtifactError, ConfigError
from masc_core.io.bounded import check_file, parse_json
from training.changes import changes
from training.config import DEFAULT_IMAGE_OPTIONS, ImageOptions
from training.data.source import (
    MAX_CLASSES,
    ImageSource,
    numbered_classes,
    read_class_table,
    warn_of_empty_classes,
)

KEPT_BYTES = 1 << 30
MAX_ROWS, MAX_GROUP_BYTES = 100_000_000, 4 << 30  # of a file, of what a group takes in memory


@dataclass(frozen=True, slots=True, eq=False)
class ParquetImages(ImageSource):
    """The rows of parquet files, in their order."""

    root: Path
    files: tuple[Path, ...]  # the files
    labels: IntArray
    group_files: IntArray  # int64 (G,), each row group's file and its number there
    group_numbers: IntArray
    starts: IntArray  # int64 (G+1,), first image of each row group
    class_names: tuple[str, ...]
    groups: _RowGroups  # reads them
    options: ImageOptions = DEFAULT_IMAGE_OPTIONS

    @classmethod
    def scan(
        cls, root: Path, files: Sequence[Path], image: str = "", label: str = ""
    ) -> ParquetImages:
        """Read the labels and the shape of ``files``; ``root`` is what the user named.

        ``image`` and ``label`` name columns; empty, they are found.

        Raises
        ------
        ArtifactError : a file cannot be read, lacks a column, or holds an impossible label
        ConfigError
            There is no image, the files do not belong together, or they are several splits.
        """
        _refuse_splits(root, files)
        columns = _columns(files[0], image, label)
        parts, groups = [], []
        for number, path in enumerate(files):
            if changed := changes(asdict(columns), asdict(_columns(path, image, label))):
                raise ConfigError(f"{path}: is not as {files[0]}: {changed}")
            labels, sizes = _read_labels(path, columns)
            parts.append(labels)
            groups += [(number, i, size) for i, size in enumerate(sizes)]
        labels = np.concatenate(parts)
        if not len(labels):
            raise ConfigError(f"{root}: its parquet files hold no images")
        group_files, group_numbers, sizes = np.array(groups, np.int64).T.copy()
        starts = np.concatenate([[0], np.cumsum(sizes)])
        names = columns.class_names
        if not names:
            labels, names = numbered_classes(labels)
        warn_of_empty_classes(root, labels, names)
        return cls(
            root=root,
            files=tuple(files),
            labels=labels,
            group_files=group_files,
            group_numbers=group_numbers,
            starts=starts,
            class_names=names,
            groups=_RowGroups(columns.image, in_structs=columns.in_structs),
        )

    def name(self, index: int) -> str:
        """File and row group, as ``train-00000-of-00002.parquet:3:17``."""
        group, row = self._place(index)
        return f"{self.files[self.group_files[group]]}:{self.group_numbers[group]}:{row}"

    def encoded(self, index: int) -> bytes:
        """Content of an image's file."""
        group, row = self._place(index)
        path = self.files[self.group_files[group]]
        content = self.groups.get(path, int(self.group_numbers[group]))[row].as_py()
        if content is None:
            raise OSError("the row has no bytes")
        return bytes(content)

    def files_sha256(self) -> str:
        """SHA-256 over the files' names, sizes and labels, in order."""
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(f"{path.name}\t{path.stat().st_size}\n".encode())
        digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def _place(self, index: int) -> tuple[int, int]:
        group = int(np.searchsorted(self.starts, index, side="right")) - 1
        return group, index - int(self.starts[group])


class _RowGroups:
    """The images of row groups, the last used ones in memory."""

    def __init__(self, column: str, *, in_structs: bool = True) -> None:
        self._column, self._in_structs, self._lock = column, in_structs, Lock()
        self._kept: OrderedDict[tuple[Path, int], pa.Array] = OrderedDict()
        self._bytes = 0
        self._footers: dict[Path, pq.FileMetaData] = {}  # to parse each file's once

    def get(self, path: Path, number: int) -> pa.Array:
        """Encoded images of a row group; an `OSError` where it cannot be read."""
        with self._lock:  # arrow decodes on all cores by itself
            key = path, number
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            images = self._read(path, number)
            self._kept[key] = images
            self._bytes += images.nbytes
            while self._bytes > KEPT_BYTES and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
            return images

    def _read(self, path: Path, number: int) -> pa.Array:
        try:
            with pq.ParquetFile(path, metadata=self._footers.get(path)) as file:
                self._footers[path] = file.metadata
                name = f"{self._column}.bytes" if self._in_structs else self._column
                column = file.read_row_group(number, [name]).column(0)
        except (FileNotFoundError, PermissionError) as error:
            raise ArtifactError(path, f"cannot be read any more ({error})") from error
        except pa.ArrowException as error:
            raise OSError(str(error)) from error
        if self._in_structs:
            column = pc.struct_field(column, "bytes")
        return column.combine_chunks()


@dataclass(frozen=True, slots=True)
class _Columns:
    """What the schema says of the two columns that count."""

    image: str
    label: str
    class_names: tuple[str, ...]
    in_structs: bool  # whether the images are fields ``bytes``, or bytes by themselves


def _columns(path: Path, image: str = "", label: str = "") -> _Columns:
    schema, features = _schema(path)
    image = _column(path, schema, image, "image", _of_type(features, "Image"))
    label = _column(path, schema, label, "label", _of_type(features, "ClassLabel"))
    kind = schema.field(image).type
    in_structs = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not _is_binary(kind.field("bytes").type if in_structs else kind):
        raise ArtifactError(path, f"its column {image!r} holds no encoded images, but {kind}")
    kind = schema.field(label).type
    if not pa.types.is_integer(kind):
        raise ArtifactError(path, f"its column {label!r} holds no class numbers, but {kind}")
    table = tuple(name for _, name in read_class_table(path.parent))
    names = features.get(label, {}).get("names") or table
    return _Columns(image, label, tuple(map(str, names)), in_structs)


def _is_binary(kind: Any) -> bool:  # noqa: ANN401 - untyped
    types = pa.types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _schema(path: Path) -> tuple[Any, dict[str, dict[str, Any]]]:
    """Arrow schema of a file, and the features that ``datasets`` describes in it."""
    try:
        check_file(path)
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(path, f"is no parquet file ({error})") from error
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return schema, {}
    described = features.items() if isinstance(features, dict) else ()
    return schema, {k: v for k, v in described if isinstance(v, dict)}


def _of_type(features: dict[str, dict[str, Any]], kind: str) -> list[str]:
    return [name for name, feature in features.items() if feature.get("_type") == kind]


def _column(path: Path, schema: Any, given: str, usual: str, described: list[str]) -> str:  # noqa: ANN401 - untyped
    """The given column, the only one that is described as such, or the one of the usual name."""
    name = given or (described[0] if len(described) == 1 else usual)
    if schema.names.count(name) > 1:
        raise ArtifactError(path, f"has several columns {name!r}")
    if name not in schema.names:
        raise ArtifactError(
            path,
            f"has no column {name!r}; its columns are {', '.join(schema.names)}, and "
            f"{path.name}#{usual}=NAME chooses one",
        )
    return name


def _read_labels(path: Path, columns: _Columns) -> tuple[IntArray, list[int]]:
    """Labels int64 (n,) of a file, and the number of images in each of its row groups."""
    try:
        with pq.ParquetFile(path) as file:
            _refuse_large(path, file.metadata)
            column = file.read([columns.label]).column(0)
            groups = [
                file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)
            ]
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(path, f"cannot be read ({error})") from error
    if column.null_count:
        raise ArtifactError(path, f"{column.null_count} of its images have no label")
    labels: IntArray = column.to_numpy().astype(np.int64)
    highest = len(columns.class_names) or MAX_CLASSES
    wrong = np.flatnonzero((labels < 0) | (labels >= highest))
    if len(wrong):
        row = int(wrong[0])
        raise ArtifactError(
            path, f"row {row} has the label {labels[row]}, which is none of {highest} classes"
        )
    return labels, groups


def _refuse_large(path: Path, metadata: pq.FileMetaData) -> None:
    sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    if metadata.num_rows > MAX_ROWS or max(sizes, default=0) > MAX_GROUP_BYTES:
        raise ArtifactError(
            path, f"has {metadata.num_rows:,} rows, in groups of {max(sizes):,} bytes and less"
        )


def _refuse_splits(root: Path, files: Sequence[Path]) -> None:
    """Training and test images often lie in one folder; they must not become one set unnoticed."""
    found = (re.fullmatch(r"(.+?)-\d+-of-\d+.*", path.stem) for path in files)
    splits = sorted({match[1] for match in found if match})
    if len(splits) > 1:
        example = files[0].parent / f"{splits[0]}-*.parquet"
        raise ConfigError(
            f"{root}: holds the splits {', '.join(splits)}; name one of them, as {example}"
        )
