"""Extract codes: a folder of images through a frozen tokenizer into a code cache.

::

    masc codes extract training/configs/cifar10/codes.toml

Finished shards are kept, so an interrupted extraction goes on where it stopped; a folder that was
begun with another tokenizer or other images is refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from masc_core.device import resolve_device
from masc_core.errors import ArtifactError, ConfigError
from masc_core.files import sha256_file
from masc_core.models.vq import VQModel
from masc_core.weights import load_tokenizer
from training.code_cache import (
    INDEX,
    CodeIndex,
    read_index,
    shard_path,
    write_array,
    write_index,
)
from training.config import StageConfig, set_threads
from training.images import ImageFolder
from training.lock import lock_folder
from training.loop import Report, no_report
from training.reconstruction import to_float


class CodesConfig(StageConfig):
    """Keys of a code extraction."""

    tokenizer: Path = Field(description="tokenizer.safetensors")
    data: Path = Field(description="folder-per-class images")
    image_size: int = Field(64, ge=8)
    flip: bool = Field(default=True, description="store the mirror image's codes beside each")
    batch_size: int = Field(64, ge=1)
    shard_images: int = Field(8192, ge=1, description="images a shard")


def extract_codes(config: CodesConfig, report: Report = no_report) -> CodeIndex:
    """Run the stage, or finish it."""
    set_threads(config.threads)
    folder = ImageFolder.scan(config.data)
    model = load_tokenizer(config.tokenizer).to(resolve_device(config.device))
    index = CodeIndex(
        tokenizer_sha256=sha256_file(config.tokenizer),
        files_sha256=folder.fingerprint(),
        image_size=config.image_size,
        num_codes=model.config.num_codes,
        num_positions=model.config.grid_size(config.image_size) ** 2,
        num_variants=2 if config.flip else 1,
        num_files=len(folder.files),
        shard_files=config.shard_images,
        class_names=folder.class_names,
    )
    with lock_folder(config.out):
        index = _fill(config, folder, model, _begin(config.out, index), report)
    if not sum(index.shards):
        raise ArtifactError(config.data, "none of its images can be read")
    return index


def _fill(
    config: CodesConfig, folder: ImageFolder, model: VQModel, index: CodeIndex, report: Report
) -> CodeIndex:
    while not index.complete:
        start = len(index.shards) * config.shard_images
        files = np.arange(start, min(start + config.shard_images, len(folder.files)))
        images = folder.read(config.image_size, files)
        codes = encode_variants(model, images.pixels, config).astype(index.dtype)
        write_array(shard_path(config.out, "codes", len(index.shards)), codes)
        write_array(shard_path(config.out, "labels", len(index.shards)), images.labels)
        index = index.model_copy(
            update={
                "shards": (*index.shards, len(images.labels)),
                "skipped": (*index.skipped, *images.skipped),
                "complete": int(files[-1]) + 1 == len(folder.files),
            }
        )
        write_index(config.out, index)
        report(int(files[-1]) + 1, len(folder.files), f"{len(index.skipped)} skipped")
    return index


@torch.inference_mode()
def encode_variants(
    model: VQModel, pixels: NDArray[np.uint8], config: CodesConfig
) -> NDArray[np.int64]:
    """Codes (N, A, L) of images uint8 (N, S, S, 3) and, if asked for, of their mirror images."""
    device = next(model.parameters()).device
    if not len(pixels):
        positions = model.config.grid_size(config.image_size) ** 2
        return np.empty((0, 2 if config.flip else 1, positions), np.int64)
    batches = []
    for start in range(0, len(pixels), config.batch_size):
        images = to_float(pixels[start : start + config.batch_size]).to(device)
        variants = [images, images.flip(3)] if config.flip else [images]
        codes = [model.encode(variant).codes for variant in variants]
        batches.append(torch.stack(codes, dim=1).cpu().numpy())
    return np.concatenate(batches)


def _begin(folder: Path, index: CodeIndex) -> CodeIndex:
    """Claim the folder for this cache; returns how far it has come."""
    if not (folder / INDEX).exists():
        write_index(folder, index)
    begun = read_index(folder)
    if begun.model_copy(update={"shards": (), "skipped": (), "complete": False}) != index:
        raise ConfigError(
            f"{folder}: holds codes of another tokenizer or of other images; "
            "choose another folder or remove this one"
        )
    return begun
