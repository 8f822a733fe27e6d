"""Take in a tokenizer of LlamaGen as if `masc tokenizer train` had made it.

::

    masc tokenizer import vq_ds16_c2i.pt --out runs/imagenet/tokenizer

Writes ``tokenizer.safetensors``, ``config.json`` and, given images, ``metrics.json`` and
``reconstructions.png``; ``codes extract`` and ``prior build`` go on from there.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from masc_core.bundle.manifest import TOKENIZER_FILE
from masc_core.errors import ArtifactError
from masc_core.io.files import atomic_write
from masc_core.models.vq import VQModel
from masc_core.models.weights import save_model
from training.config import set_threads
from training.data.images import open_images
from training.llamagen.container import Container, Weights
from training.llamagen.models import tokenizer_of
from training.llamagen.sizes import read_vq_config
from training.loop.lock import lock_folder
from training.metrics.reconstruction import reconstruction_metrics, reconstruction_sheet
from training.provenance import made_with
from training.stages.import_model import source_of


class ImportTokenizerConfig(BaseModel):
    """Options of a tokenizer's import."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Path
    out: Path
    weights: Weights = "model"
    val_data: Path | None = None
    val_images: int = Field(2000, ge=1)
    image_size: int = Field(256, ge=8)
    threads: int = Field(0, ge=0)


def import_tokenizer(config: ImportTokenizerConfig) -> dict[str, Any]:
    """Write the folder; returns the metrics on the validation images, if there are any.

    Raises
    ------
    ConfigError
        The folder is in use or cannot be written, or the images do not fit the tokenizer.
    ArtifactError
        The file is missing, damaged, or holds something else; or the folder has a tokenizer.
    """
    set_threads(config.threads)
    container = Container.open(config.source, config.weights)
    model = tokenizer_of(container, read_vq_config(container)).float()
    with lock_folder(config.out):
        path = config.out / TOKENIZER_FILE
        if path.exists():
            raise ArtifactError(path, "exists already; choose another folder or remove this one")
        metrics = _measure(config, model)
        _write_json(config.out / "metrics.json", metrics)
        _write_json(
            config.out / "config.json",
            {
                **asdict(model.config),
                "imported": source_of(container, config.weights),
                "made_with": made_with(),
            },
        )
        save_model(path, model)  # last: a folder with it is complete
    return metrics


def _measure(config: ImportTokenizerConfig, model: VQModel) -> dict[str, Any]:
    if config.val_data is None:
        return {}
    model.config.grid_size(config.image_size)
    images = open_images(config.val_data)
    pixels = images.read(config.image_size, images.spread(config.val_images)).pixels
    reconstruction_sheet(model, pixels).save(config.out / "reconstructions.png")
    return reconstruction_metrics(model, pixels)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    atomic_write(path, (json.dumps(value, indent=2) + "\n").encode())
