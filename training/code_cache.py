"""The code cache: a data set of images as codes, packed, memory-mapped, 16 bits where V allows.

``index.json`` names the tokenizer's hash, the image size and the counts; shard ``i`` is
``codes-<i>.npy`` (n, A, L), all A variants of an image together, and ``labels-<i>.npy`` (n,).
Codes are the tokenizer's, not clusters: one cache serves every prior.
This module does not know how codes are made.

Legend: N images, A variants of an image (itself, its mirror image), L positions, V codes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from masc_core.errors import ArtifactError
from masc_core.files import atomic_path, atomic_write

INDEX = "index.json"


class CodeIndex(BaseModel):
    """Header of a cache; ``shards`` grows by the images of each finished one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    tokenizer_sha256: str
    files_sha256: str
    image_size: int
    num_codes: int
    num_positions: int
    num_variants: int
    num_files: int
    shard_files: int
    class_names: tuple[str, ...]
    shards: tuple[int, ...] = ()
    skipped: tuple[str, ...] = ()
    complete: bool = False

    @property
    def dtype(self) -> np.dtype[np.uint16 | np.uint32]:
        """Smallest type that holds every code."""
        return np.dtype(np.uint16 if self.num_codes <= 1 << 16 else np.uint32)


@dataclass(frozen=True, slots=True)
class CodeCache:
    """A complete cache, opened for reading.

    Attributes
    ----------
    codes : one memory map (n, A, L) a shard
    labels : int64 (N,)
    starts : int64 (number of shards + 1,), first image of each shard
    """

    index: CodeIndex
    codes: tuple[NDArray[np.uint16 | np.uint32], ...]
    labels: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def open(cls, folder: Path) -> CodeCache:
        """Open a cache.

        Raises
        ------
        ArtifactError
            The cache is missing, unfinished or damaged; the file at fault is named.
        """
        index = read_index(folder)
        if not index.complete:
            raise ArtifactError(folder, "is not finished; run `masc codes extract` again")
        codes, labels = [], []
        for i, count in enumerate(index.shards):
            shape = (count, index.num_variants, index.num_positions)
            codes.append(_open_array(shard_path(folder, "codes", i), shape, index.dtype))
            labels.append(_open_array(shard_path(folder, "labels", i), (count,), np.dtype("i8")))
        starts = np.concatenate([[0], np.cumsum(index.shards)]).astype(np.int64)
        return cls(index, tuple(codes), np.concatenate(labels), starts)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, images: NDArray[np.int64], variants: NDArray[np.int64]) -> NDArray[np.int64]:
        """Codes int64 (B, L) of the named images, one variant of each, both int64 (B,)."""
        out = np.empty((len(images), self.index.num_positions), np.int64)
        shards = np.searchsorted(self.starts, images, side="right") - 1
        for shard in np.unique(shards):
            rows = np.flatnonzero(shards == shard)
            local = images[rows] - self.starts[shard]
            out[rows] = self.codes[shard][local, variants[rows]]
        return out

    def counts(self) -> NDArray[np.int64]:
        """How often each code occurs, over all variants, int64 (V,)."""
        total = np.zeros(self.index.num_codes, np.int64)
        for shard in self.codes:
            total += np.bincount(shard.ravel(), minlength=len(total))
        return total


def shard_path(folder: Path, kind: str, number: int) -> Path:
    """File of one shard; ``kind`` is ``codes`` or ``labels``."""
    return folder / f"{kind}-{number:05d}.npy"


def read_index(folder: Path) -> CodeIndex:
    """Read the header of a cache, complete or not."""
    path = folder / INDEX
    try:
        return CodeIndex.model_validate(json.loads(path.read_text("utf-8")))
    except FileNotFoundError as error:
        raise ArtifactError(folder, "holds no code cache") from error
    except (OSError, ValueError, ValidationError) as error:
        raise ArtifactError(path, "is not the index of a code cache") from error


def write_index(folder: Path, index: CodeIndex) -> None:
    """Write the header of a cache, atomically."""
    atomic_write(folder / INDEX, (index.model_dump_json(indent=1) + "\n").encode())


def write_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write one array of a shard, atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _open_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(path, f"cannot be read ({error})") from error
    if array.shape != shape or array.dtype != dtype:
        raise ArtifactError(
            path, f"holds {array.dtype} {array.shape}, the index says {dtype} {shape}"
        )
    return array
