"""Small but complete runs of each stage, for the tests of the next one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from masc_core.progress import ProgressCallback
from tests.tiny_images import make_images
from training.stages.codes import extract_codes
from training.stages.configs import (
    CodesConfig,
    CompleterTrainingConfig,
    PriorConfig,
    RefinerTrainingConfig,
    TokenizerTrainingConfig,
    TransformerTrainingConfig,
)
from training.stages.prior import build_prior
from training.stages.tokenizer import train_tokenizer


def tokenizer_config(root: Path, **changes: object) -> TokenizerTrainingConfig:
    values: dict[str, object] = {
        "out": root / "tokenizer",
        "data": root / "train",
        "val_data": root / "val",
        "image_size": 16,
        "num_codes": 32,
        "ch_mult": (1, 1, 1),
        "num_res_blocks": 1,
        "z_channels": 32,
        "epochs": 2,
        "batch_size": 8,
        "lr": 1e-3,
        "restart_codes_every": 2,
        "log_every": 1,
    }
    return TokenizerTrainingConfig.model_validate(values | changes)


def codes_config(root: Path, split: str, **changes: object) -> CodesConfig:
    values: dict[str, object] = {
        "out": root / f"codes-{split}",
        "tokenizer": root / "tokenizer" / "tokenizer.safetensors",
        "data": root / split,
        "image_size": 16,
        "variants": "flip" if split == "train" else "none",
        "shard_images": 10,
    }
    return CodesConfig.model_validate(values | changes)


def prior_config(root: Path, **changes: object) -> PriorConfig:
    values: dict[str, object] = {
        "out": root / "prior",
        "tokenizer": root / "tokenizer" / "tokenizer.safetensors",
        "num_clusters": 16,
    }
    return PriorConfig.model_validate(values | changes)


def transformer_config(root: Path, **changes: object) -> TransformerTrainingConfig:
    values: dict[str, object] = {
        "out": root / "transformer",
        "codes": root / "codes-train",
        "val_codes": root / "codes-val",
        "prior": root / "prior" / "prior.npz",
        "dim": 32,
        "n_layer": 2,
        "n_head": 2,
        "epochs": 3,
        "batch_size": 8,
        "lr": 3e-3,
        "log_every": 1,
    }
    return TransformerTrainingConfig.model_validate(values | changes)


def refiner_config(root: Path, transformer: Path, **changes: object) -> RefinerTrainingConfig:
    values: dict[str, object] = {
        "out": root / "refiner",
        "codes": root / "codes-train",
        "val_codes": root / "codes-val",
        "prior": root / "prior" / "prior.npz",
        "transformer": transformer,
        "width": 16,
        "n_head": 2,
        "ffn_dim": 32,
        "epochs": 30,
        "batch_size": 12,
        "lr": 1e-2,
    }
    return RefinerTrainingConfig.model_validate(values | changes)


def completer_config(root: Path, **changes: object) -> CompleterTrainingConfig:
    values: dict[str, object] = {
        "out": root / "completer",
        "codes": root / "codes-train",
        "val_codes": root / "codes-val",
        "prior": root / "prior" / "prior.npz",
        "dim": 16,
        "n_layer": 2,
        "n_head": 2,
        "epochs": 30,
        "batch_size": 12,
        "lr": 1e-2,
        "checkpoint_every": 1000,
    }
    return CompleterTrainingConfig.model_validate(values | changes)


@contextmanager
def power_cut(at: int) -> Iterator[ProgressCallback]:
    """Lend a report for a stage, which is cut off when it reports ``at``."""

    def report(done: int, total: int, text: str) -> None:
        if done == at:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        yield report


def photographs(root: Path) -> Path:
    make_images(root / "train", per_class=12, seed=0)
    make_images(root / "val", per_class=4, seed=1)
    return root


def through_prior(root: Path) -> Path:
    """Everything that a transformer needs."""
    photographs(root)
    train_tokenizer(tokenizer_config(root))
    for split in ("train", "val"):
        extract_codes(codes_config(root, split))
    build_prior(prior_config(root))
    return root
