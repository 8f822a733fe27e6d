"""The code cache: a data set of images as codes, packed, memory-mapped, 16 bits where V allows.

``index.json`` names the tokenizer's hash, the image size and the counts; shard ``i`` is
``codes-<i>.npy`` (n, A, L), all A variants of an image together, ``labels-<i>.npy`` (n,), and
``shard-<i>.json``, its entry of the index, written when the others are there. The index lists them
once all shards are. Codes are the tokenizer's, not clusters: one cache serves every prior.

Legend: N images, A variants of an image (its mirror image, its crops), L positions, V codes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from masc_core.arrays import IntArray
from masc_core.errors import ArtifactError, ConfigError
from masc_core.io.bounded import open_file, read_file, size_of
from masc_core.io.files import atomic_path, atomic_write, sha256_file
from masc_core.io.npz import check_npy
from training.config import ImageOptions

INDEX = "index.json"
RERUN_HINT = "run `masc codes extract` again"

Codes = NDArray[np.uint16 | np.uint32]
Variants = Literal["none", "flip", "ten_crop"]
NUM_VARIANTS: dict[Variants, int] = {"none": 1, "flip": 2, "ten_crop": 10}


class CodeShard(BaseModel):
    """What is in a finished shard."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_images: int  # n
    codes_sha256: str  # of its two files
    labels_sha256: str
    skipped: tuple[str, ...] = ()  # names of the images that could not be read


class CodeIndex(BaseModel):
    """Header of a cache; ``shards`` is empty until the cache is complete."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    tokenizer_sha256: str
    files_sha256: str
    image_size: int
    exif_orientation: bool = False  # caches from before there was a choice
    background: str = "none"
    variants: Variants
    crop_range: float
    num_codes: int
    num_positions: int
    num_files: int
    shard_files: int
    class_names: tuple[str, ...]
    shards: tuple[CodeShard, ...] = ()

    @property
    def num_variants(self) -> int:
        """A."""
        return NUM_VARIANTS[self.variants]

    @property
    def num_shards(self) -> int:
        """Shards of the complete cache."""
        return -(-self.num_files // self.shard_files)

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return len(self.shards) == self.num_shards

    @property
    def num_images(self) -> int:
        """N, so far."""
        return sum(shard.num_images for shard in self.shards)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the images that could not be read."""
        return tuple(name for shard in self.shards for name in shard.skipped)

    @property
    def dtype(self) -> np.dtype[np.uint16 | np.uint32]:
        """Smallest type that holds every code."""
        return np.dtype(np.uint16 if self.num_codes <= 1 << 16 else np.uint32)


Options = TypeVar("Options", bound=ImageOptions)


def with_cached_options(index: CodeIndex, config: Options) -> Options:
    """The configuration with the cache's image options, so that other images are read alike.

    A `ConfigError` names an option that was given and differs.
    """
    chosen = {key: getattr(index, key) for key in ImageOptions.model_fields}
    for key in ImageOptions.model_fields.keys() & config.model_fields_set:
        if getattr(config, key) != chosen[key]:
            raise ConfigError(
                f"{key}: {getattr(config, key)}, but the images of the codes were read with "
                f"{chosen[key]}; leave it out"
            )
    return config.model_copy(update=chosen)


@dataclass(frozen=True, slots=True)
class CodeCache:
    """A complete cache, opened for reading."""

    index: CodeIndex
    codes: tuple[Codes, ...]  # one memory map (n, A, L) a shard
    labels: IntArray  # int64 (N,)
    starts: IntArray  # int64 (number of shards + 1,), first image of each shard

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> CodeCache:
        """Open a cache; with ``verify`` read it through, against the checksums in its index.

        An `ArtifactError` where it is missing, unfinished or damaged names the file at fault.
        """
        index = read_index(folder)
        if not index.complete:
            raise ArtifactError(folder, f"is not finished; {RERUN_HINT}")
        with ThreadPoolExecutor() as pool:
            numbers = range(index.num_shards)
            opened = list(
                pool.map(
                    lambda i: open_shard(folder, index, i, index.shards[i], verify=verify), numbers
                )
            )
        codes, labels = zip(*opened, strict=True)
        starts = np.cumsum([0, *(shard.num_images for shard in index.shards)], dtype=np.int64)
        return cls(index, codes, np.concatenate(labels), starts)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, images: IntArray, variants: IntArray) -> IntArray:
        """Codes int64 (B, L) of the named images, one variant of each, both int64 (B,)."""
        if len(images) and not 0 <= images.min() <= images.max() < len(self):
            raise IndexError(f"images {images.min()}..{images.max()} of {len(self)}")
        out = np.empty((len(images), self.index.num_positions), np.int64)
        shards = np.searchsorted(self.starts, images, side="right") - 1
        rows = images - self.starts[shards]
        places = zip(shards.tolist(), rows.tolist(), variants.tolist(), strict=True)
        # A random batch has few images in a shard, so indexing by arrays would cost more.
        for i, (shard, row, variant) in enumerate(places):
            out[i] = self.codes[shard][row, variant]
        return out

    def counts(self, variants: slice = slice(None)) -> IntArray:
        """How often each code occurs, over all variants or these, int64 (V,)."""
        total = np.zeros(self.index.num_codes, np.int64)
        for shard in self.codes:
            total += np.bincount(shard[:, variants].ravel(), minlength=len(total))
        return total


def open_shard(
    folder: Path, index: CodeIndex, number: int, shard: CodeShard, *, verify: bool = True
) -> tuple[Codes, IntArray]:
    """Codes (n, A, L), mapped, and labels int64 (n,); an `ArtifactError` names a damaged file."""
    shape = (shard.num_images, index.num_variants, index.num_positions)
    codes = shard_path(folder, "codes", number)
    labels = shard_path(folder, "labels", number)
    return (
        _open_array(codes, shape, index.dtype, shard.codes_sha256 if verify else None),
        _open_array(labels, shape[:1], np.dtype(np.int64), shard.labels_sha256 if verify else None),
    )


def write_shard(
    folder: Path,
    number: int,
    codes: Codes,
    labels: IntArray,
    skipped: tuple[str, ...] = (),
) -> CodeShard:
    """Write the files of a shard: the arrays, then the entry that says that they are there."""
    paths = shard_path(folder, "codes", number), shard_path(folder, "labels", number)
    for path, array in zip(paths, (codes, labels), strict=True):
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
    shard = CodeShard(
        num_images=len(labels),
        codes_sha256=sha256_file(paths[0]),
        labels_sha256=sha256_file(paths[1]),
        skipped=skipped,
    )
    _write_json(_entry_path(folder, number), shard)
    return shard


def read_shard(folder: Path, number: int) -> CodeShard | None:
    """Entry of a shard, or None where it is not finished."""
    path = _entry_path(folder, number)
    try:
        return CodeShard.model_validate_json(read_file(path))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ArtifactError(path, "is not the entry of a shard; remove it") from error


def shard_path(folder: Path, kind: Literal["codes", "labels"], number: int) -> Path:
    """File of one shard."""
    return folder / f"{kind}-{number:05d}.npy"


def read_index(folder: Path) -> CodeIndex:
    """Read the header of a cache, complete or not."""
    path = folder / INDEX
    try:
        return CodeIndex.model_validate_json(read_file(path))
    except FileNotFoundError as error:
        raise ArtifactError(folder, "holds no code cache") from error
    except (OSError, ValidationError) as error:
        raise ArtifactError(path, "is not the index of a code cache") from error


def write_index(folder: Path, index: CodeIndex) -> None:
    """Write the header of a cache, atomically."""
    _write_json(folder / INDEX, index)


def _entry_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.json"


def _write_json(path: Path, content: BaseModel) -> None:
    atomic_write(path, (content.model_dump_json(indent=1) + "\n").encode())


def _open_array(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic], sha256: str | None
) -> NDArray[Any]:
    try:
        with open_file(path) as file:
            check_npy(file, size_of(file), size_of(file))
        whole = sha256 is None or sha256_file(path) == sha256
        # A plain array over the map: indexing a memmap costs several times as much.
        array: NDArray[Any] = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(path, f"cannot be read ({error}); {RERUN_HINT}") from error
    if array.shape != shape or array.dtype != dtype:
        raise ArtifactError(
            path, f"holds {array.dtype} {array.shape}, the index says {dtype} {shape}; {RERUN_HINT}"
        )
    if not whole:
        raise ArtifactError(path, f"does not hold what was written to it; {RERUN_HINT}")
    return array
