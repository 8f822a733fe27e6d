"""Extract codes: images through a frozen tokenizer into a code cache.

::

    masc codes extract training/configs/cifar10/codes.toml
    torchrun --nproc-per-node 8 -m masc codes extract training/configs/imagenet256/codes.toml

Under torchrun the processes take the shards in turn, and the first one completes the index.
Whole shards are kept, so an interrupted extraction goes on where it stopped, and a damaged shard is
made anew; a folder that was begun with another tokenizer or other images is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from masc_core.arrays import IntArray
from masc_core.errors import ArtifactError, ConfigError
from masc_core.images import Pixels
from masc_core.models.vq import VQModel
from masc_core.progress import ProgressCallback, no_progress
from training.changes import changes
from training.config import set_threads
from training.data.code_cache import (
    INDEX,
    CodeIndex,
    CodeShard,
    open_shard,
    read_index,
    read_shard,
    write_index,
    write_shard,
)
from training.data.codebook_source import TrainedTokenizer
from training.data.crops import ten_crop_source, ten_crops
from training.data.images import open_images
from training.data.source import ImageSource, LabelledImages, require_classes
from training.loop.distributed import Ranks, init_distributed
from training.loop.run_dir import lock_folder
from training.metrics.reconstruction import to_float
from training.stages.configs import CodesConfig

logger = logging.getLogger(__name__)


def extract_codes(config: CodesConfig, report: ProgressCallback = no_progress) -> CodeIndex:
    """Run the stage, or finish it.

    Raises
    ------
    ConfigError : the images are no set with several classes, do not fit the tokenizer, or the
        folder is in use, cannot be written, or was begun with something else
    ArtifactError : a file is damaged, or none of the images can be read
    """
    set_threads(config.threads)
    source = open_images(config.data, config)
    require_classes(source, "data")
    tokenizer = TrainedTokenizer.open(config.tokenizer, with_encoder=True)
    grid = tokenizer.model.config.grid_size(config.image_size)
    header = CodeIndex(
        tokenizer_sha256=tokenizer.sha256,
        files_sha256=source.fingerprint(),
        image_size=config.image_size,
        variants=config.variants,
        exif_orientation=config.exif_orientation,
        background=config.background,
        crop_range=config.crop_range if config.variants == "ten_crop" else 1.0,
        num_codes=tokenizer.model.config.num_codes,
        num_positions=grid**2,
        num_files=len(source),
        shard_files=config.shard_images,
        class_names=source.class_names,
    )
    with init_distributed(config.device) as ranks, _claimed(config.out, header, ranks):
        model = tokenizer.model.to(ranks.device)
        skipped = 0
        for number in range(ranks.rank, header.num_shards, ranks.world_size):
            shard = finished = _finished_shard(config.out, header, number)
            if shard is None:
                shard = _make_shard(config, source, model, header, number)
            skipped += len(shard.skipped)
            if finished is None:
                done = min((number + ranks.world_size) * config.shard_images, len(source))
                report(done, len(source), f"{skipped} skipped")
        ranks.barrier()
        with ranks.raise_on_all_ranks(f"finishing {config.out}"):
            if ranks.is_main:
                _finish(config.out, header)
    index = read_index(config.out)
    if not index.num_images:
        reason = f"none of its images can be read, first {source.why_unreadable(0)}"
        raise ArtifactError(config.data, reason)
    return index


@contextmanager
def _claimed(folder: Path, header: CodeIndex, ranks: Ranks) -> Iterator[None]:
    """Claim a folder for all ranks, which the main one locks."""
    with ExitStack() as held:
        with ranks.raise_on_all_ranks(f"opening {folder}"):
            if ranks.is_main:
                held.enter_context(lock_folder(folder))
                _claim(folder, header)
        yield


def _claim(folder: Path, header: CodeIndex) -> None:
    """Claim the folder for this cache."""
    if not (folder / INDEX).exists():
        write_index(folder, header)
    begun = read_index(folder).model_copy(update={"shards": ()})
    changed = changes(begun.model_dump(), header.model_dump())
    if changed:
        raise ConfigError(
            f"{folder}: was begun otherwise: {changed}; choose another folder or remove this one"
        )


def _finished_shard(folder: Path, header: CodeIndex, number: int) -> CodeShard | None:
    """Entry of a shard that is there and undamaged."""
    shard = read_shard(folder, number)
    try:
        if shard is not None:
            open_shard(folder, header, number, shard)
    except ArtifactError as error:
        logger.warning("making a shard anew: %s", error)
        return None
    return shard


def _make_shard(
    config: CodesConfig, source: ImageSource, model: VQModel, header: CodeIndex, number: int
) -> CodeShard:
    first = number * config.shard_images
    images = np.arange(first, min(first + config.shard_images, len(source)))
    shape = (header.num_variants, header.num_positions)
    codes, labels = [np.empty((0, *shape), np.int64)], [np.empty(0, np.int64)]
    skipped: list[str] = []
    for batch in _batches(config, source, images):
        if len(batch.pixels):
            codes.append(encode_variants(model, batch.pixels, config))
            labels.append(batch.labels)
        skipped += batch.skipped
    packed = np.concatenate(codes).astype(header.dtype)
    return write_shard(config.out, number, packed, np.concatenate(labels), tuple(skipped))


def _batches(
    config: CodesConfig, source: ImageSource, images: IntArray
) -> Iterator[LabelledImages]:
    """Images of a shard by batches, the next of which is read meanwhile."""
    size = config.image_size
    if config.variants == "ten_crop":
        size = ten_crop_source(size, config.crop_range)
    parts = np.split(images, range(config.batch_size, len(images), config.batch_size))
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(source.read, size, parts[0])
        for part in parts[1:]:
            batch, coming = coming, pool.submit(source.read, size, part)
            yield batch.result()
        yield coming.result()


@torch.inference_mode()
def encode_variants(model: VQModel, pixels: Pixels, config: CodesConfig) -> NDArray[np.int64]:
    """Codes (B, A, L) of the variants of uint8 (B, S, S, 3), of (B, R, R, 3) for ten crops."""
    variants = [pixels]
    if config.variants == "flip":
        variants = [pixels, pixels[:, :, ::-1]]
    elif config.variants == "ten_crop":
        variants = list(ten_crops(pixels, config.image_size).swapaxes(0, 1))
    device = next(model.parameters()).device
    codes = [model.encode(to_float(v.copy()).to(device)).codes for v in variants]
    return torch.stack(codes, dim=1).cpu().numpy()


def _finish(folder: Path, header: CodeIndex) -> None:
    """List the shards in the index."""
    shards = [read_shard(folder, number) for number in range(header.num_shards)]
    if None in shards:
        raise ConfigError(f"{folder}: is not the same folder on every rank")
    write_index(folder, header.model_copy(update={"shards": tuple(shards)}))
