"""Code caches that no tokenizer made, and runs over them: small, with something to be learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from masc_core.models.vq import VQConfig, VQModel
from masc_core.models.weights import save_model
from training.data.code_cache import CodeIndex, write_index, write_shard
from training.stages.configs import TransformerTrainingConfig

NUM_CODES = 12
POSITIONS = 16


def write_codes(folder: Path, images: int, seed: int) -> Path:
    """Walks over the codes, each step as the label says but for some noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(images, dtype=np.int64) % 3
    steps = np.where(generator.random((images, 2, POSITIONS)) < 0.9, 1, 5)
    codes = (steps * (1 + labels[:, None, None])).cumsum(axis=2) % NUM_CODES
    names = {"class_names": ("one", "two", "three"), "files_sha256": f"{seed:064d}"}
    return write_cache(folder, codes, labels, num_codes=NUM_CODES, image_size=16, **names)


def write_cache(
    folder: Path, codes: NDArray[np.int64], labels: NDArray[np.int64], **header: object
) -> Path:
    """A cache of one shard: codes (N, 2, L), labels (N,), and what the header says of them."""
    values: dict[str, object] = {
        "tokenizer_sha256": "0" * 64,
        "files_sha256": "0" * 64,
        "variants": "flip",
        "crop_range": 1.0,
        "num_positions": codes.shape[2],
        "num_files": len(codes),
        "shard_files": len(codes),
    }
    index = CodeIndex.model_validate(values | header)
    folder.mkdir(parents=True, exist_ok=True)
    shard = write_shard(folder, 0, codes.astype(index.dtype), labels)
    write_index(folder, index.model_copy(update={"shards": (shard,)}))
    return folder


def write_inputs(folder: Path) -> Path:
    """Caches of training and validation images, and an untrained tokenizer of their codes."""
    write_codes(folder / "train", 35, seed=0)
    write_codes(folder / "val", 11, seed=1)
    torch.manual_seed(0)
    tokenizer = VQModel(VQConfig(num_codes=NUM_CODES, ch=32, ch_mult=(1, 1, 1), z_channels=32))
    save_model(folder / "tokenizer.safetensors", tokenizer)
    return folder


def walk_config(codes: Path, out: Path, **changes: object) -> TransformerTrainingConfig:
    """A run of 12 steps, four an epoch, checkpoints after every second one."""
    values: dict[str, object] = {
        "codes": codes / "train",
        "val_codes": codes / "val",
        "out": out,
        "device": "cpu",
        "dim": 16,
        "n_layer": 2,
        "n_head": 2,
        "epochs": 3,
        "batch_size": 8,
        "lr": 1e-2,
        "log_every": 1,
        "checkpoint_every": 2,
    }
    return TransformerTrainingConfig.model_validate(values | changes)
