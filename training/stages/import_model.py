"""Take in a transformer and a tokenizer of LlamaGen as a version that is served as it is.

::

    masc models import --gpt c2i_B_256.pt --tokenizer vq_ds16_c2i.pt --name llamagen-b \
        --image-size 256 --activate

The vocabulary stays flat: every code is its own cluster. Sizes are read off the files; the CFG
scale is the one that LlamaGen suggests for the size. Nothing in the files is run.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from masc_core.bundle.manifest import Defaults, Manifest, ModelCard, PlainName
from masc_core.bundle.registry import Registry
from masc_core.bundle.write import BundleDraft, BundleParts, draft_version
from masc_core.errors import ConfigError
from masc_core.io.files import sha256_file
from masc_core.models.gpt_config import GPTConfig
from masc_core.prior import ClusterMap
from masc_core.settings import models_dir
from training.config import set_threads
from training.llamagen.class_names import read_class_names
from training.llamagen.container import Container, Weights
from training.llamagen.models import gpt_of, tokenizer_of
from training.llamagen.sizes import (
    OTHER_CFG,
    SUGGESTED_CFG,
    read_gpt_config,
    read_image_size,
    read_vq_config,
    size_name,
)
from training.loop.stage import Report, no_report
from training.metrics.table import first_images
from training.provenance import made_with

WEIGHT_TYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


class ImportConfig(BaseModel):
    """Keys of an import."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpt: Path = Field(description="transformer, .pt or .safetensors")
    tokenizer: Path = Field(description="VQ tokenizer, .pt or .safetensors")
    name: PlainName = Field(description="name of the model")
    version: PlainName | None = Field(
        None, description="name of the version; the next number without it"
    )
    models: Path | None = Field(
        None, description="folder of the bundles; MASC_MODELS_DIR, or models"
    )
    image_size: int | None = Field(
        None, ge=8, description="pixels a side, where the transformer's file does not tell"
    )
    n_head: int | None = Field(None, ge=1, description="heads, for a size that is not LlamaGen's")
    classes: Path | None = Field(
        None, description="class names, one a line; ImageNet's where there are 1000 classes"
    )
    gpt_weights: Weights = Field("model", description="model, or ema, their moving average")
    tokenizer_weights: Weights = Field("model", description="model, or ema, their moving average")
    weights_dtype: Literal["float16", "bfloat16", "float32"] = Field(
        "float16", description="precision of the weights on the disk"
    )
    cfg_scale: float | None = Field(
        None, ge=1, le=20, description="default CFG scale; the one suggested for the size"
    )
    with_encoder: bool = Field(default=False, description="keep the tokenizer's encoder")
    samples: int = Field(
        4, ge=0, description="images that are made, as they are served, for a first look; 0 is none"
    )
    activate: bool = Field(default=False, description="serve this version from now on")
    note: str = Field("", description="where the model comes from, for its manifest")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; for the samples")
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves the choice to torch")


def import_model(config: ImportConfig, report: Report = no_report) -> Manifest:
    """Write a version of the checkpoints.

    Raises
    ------
    ConfigError
        The two do not belong together, or something must be said that the files do not.
    ArtifactError
        A file is missing, damaged, or holds something else; or the version exists, or cannot be
        written.
    """
    set_threads(config.threads)
    models = models_dir(config.models)
    with draft_version(models, config.name, config.version) as draft:
        _write(config, draft, report)
        report(3, 4, f"{config.samples} images")
        samples = None
        if config.samples:
            samples = first_images(draft.load(config.device), num_images=config.samples)
        manifest = draft.finish(samples=samples)
    report(4, 4, "")
    if config.activate:
        Registry(models).activate(manifest.name, manifest.version)
    return manifest


def _write(config: ImportConfig, draft: BundleDraft, report: Report) -> None:
    report(0, 4, "reading")
    gpt = Container.open(config.gpt, config.gpt_weights)
    vq = Container.open(config.tokenizer, config.tokenizer_weights)
    vq_config = read_vq_config(vq)
    image_size = read_image_size(gpt, config.image_size, vq_config.factor)
    grid = vq_config.grid_size(image_size)
    gpt_config = read_gpt_config(gpt, block_size=grid**2, n_head=config.n_head)
    if gpt_config.vocab_size != vq_config.num_codes:
        raise ConfigError(
            f"tokenizer: {config.tokenizer} has {vq_config.num_codes} codes, but {config.gpt} "
            f"predicts {gpt_config.vocab_size}"
        )
    parts = BundleParts(
        model=gpt_of(gpt, gpt_config),
        tokenizer=tokenizer_of(vq, vq_config),
        prior=ClusterMap.identity(vq_config.num_codes),
    )
    card = ModelCard(
        name=config.name,
        version=draft.version,
        created=datetime.now(UTC).replace(microsecond=0),
        class_names=read_class_names(gpt_config.num_classes, config.classes),
        defaults=Defaults(cfg_scale=config.cfg_scale or suggested_cfg(gpt_config)),
        provenance={
            "note": config.note,
            "imported": {
                "gpt": source_of(gpt, config.gpt_weights) | {"size": size_name(gpt_config)},
                "tokenizer": source_of(vq, config.tokenizer_weights),
            },
            "made_with": made_with(),
        },
    )
    report(1, 4, "writing")
    draft.write(
        card,
        parts,
        weights_dtype=WEIGHT_TYPES[config.weights_dtype],
        with_encoder=config.with_encoder,
    )


def suggested_cfg(config: GPTConfig) -> float:
    """CFG scale that LlamaGen suggests for a transformer of that size."""
    return SUGGESTED_CFG.get(size_name(config) or "", OTHER_CFG)


def source_of(container: Container, weights: Weights) -> dict[str, JsonValue]:
    """What a manifest says of a checkpoint; not where it lay."""
    return {
        "file": container.path.name,
        "sha256": sha256_file(container.path),
        "weights": weights,
        "steps": container.steps,
        "arguments": dict(container.arguments),
    }
