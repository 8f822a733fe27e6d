r"""Take in a transformer and a tokenizer of LlamaGen or GigaTok as a version, or one as a run.

::

    masc models import --gpt c2i_B_256.pt --tokenizer vq_ds16_c2i.pt --name llamagen-b \
        --image-size 256 --activate
    masc models import --gpt GPT_B256_e300_VQ_BL.pt --tokenizer VQ_BL256.pt --name gigatok-b
    masc models import --gpt hf://somebody/llamagen-b/model.safetensors --image-size 256 \
        --tokenizer hf://FoundationVision/LlamaGen/vq_ds16_c2i.pt --name theirs
    masc tokenizer import vq_ds16_c2i.pt --out runs/imagenet/tokenizer

The vocabulary stays flat: every code is its own cluster. Sizes are read off the files; the CFG
scale is the one that LlamaGen suggests for the size. A transformer of IAR comes with ``--mapping``,
by which it gets the numbers of LlamaGen's tokenizer back. Of a tokenizer of GigaTok the same
weights, ``model`` or ``ema``, encode and decode. Nothing in the files is run.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch
from pydantic import JsonValue

from masc_core.bundle.manifest import TOKENIZER_FILE, Defaults, Manifest, ModelCard
from masc_core.bundle.write import BundleDraft, BundleParts, draft_version
from masc_core.errors import ArtifactError
from masc_core.io.files import sha256_file, write_json
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.vq import VQModel
from masc_core.models.weights import save_model
from masc_core.prior import ClusterMap
from masc_core.progress import ProgressCallback, no_progress
from masc_core.sampling.cfg_schedule import DEFAULT_CFG_START, CFGSchedule, check_cfg_start
from masc_core.settings import models_dir
from object_storage.registry import open_registry
from training.config import is_address, set_threads, without_secrets
from training.data.images import open_images
from training.downloads import local_file
from training.loop.run_dir import lock_folder
from training.metrics.bundle_metrics import codebook_files, first_images
from training.metrics.reconstruction import reconstruction_metrics, reconstruction_sheet
from training.pretrained.checkpoint_file import CheckpointFile, Weights
from training.pretrained.class_names import read_class_names
from training.pretrained.iar import clusters_of, read_cluster_size, read_mapping
from training.pretrained.models import (
    GIGATOK_CFG,
    OTHER_CFG,
    SUGGESTED_CFG,
    check_pair,
    gpt_of,
    read_gpt_config,
    read_image_size,
    read_vq_config,
    size_name,
    tokenizer_of,
)
from training.provenance import made_with
from training.stages.configs import ImportConfig, ImportTokenizerConfig

WEIGHT_TYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


def import_model(config: ImportConfig, report: ProgressCallback = no_progress) -> Manifest:
    """Write a version of the checkpoints.

    Raises
    ------
    ConfigError : the two do not belong together, or something must be said that the files do not
    ArtifactError : a file is missing, damaged, or holds something else; or the version exists, or
        cannot be written
    """
    set_threads(config.threads)
    registry = open_registry(models_dir(config.models))
    with draft_version(registry, config.name, config.version) as draft:
        tokenizer = _write(config, draft, report)
        bundle = draft.load(config.device)
        report(3, 4, f"{config.samples} images")
        samples = first_images(bundle, num_images=config.samples)
        codebook = codebook_files(tokenizer, bundle, config.shuffles, report)
        manifest = draft.finish(samples=samples, codebook=codebook)
    report(4, 4, "")
    if config.activate:
        registry.activate(manifest.name, manifest.version)
    return manifest


def _write(config: ImportConfig, draft: BundleDraft, report: ProgressCallback) -> VQModel:
    """Write the weights; returns the tokenizer, not rounded."""
    files = {
        key: local_file(source, report)
        for key in ("gpt", "tokenizer", "mapping")
        if (source := getattr(config, key)) is not None
    }
    report(0, 4, "reading")
    gpt = CheckpointFile.open(files["gpt"], config.gpt_weights)
    vq = CheckpointFile.open(files["tokenizer"], config.tokenizer_weights)
    vq_config = read_vq_config(vq, config.tokenizer_heads)
    image_size = read_image_size(gpt, config.image_size, vq_config.factor)
    grid = vq_config.grid_size(image_size)
    gpt_config = read_gpt_config(gpt, block_size=grid**2, n_head=config.n_head)
    check_pair(gpt, gpt_config, vq, vq_config)
    suggested: CFGSchedule = "step" if gpt_config.positions == "learned" else "constant"
    schedule = config.cfg_schedule or suggested
    check_cfg_start(config.cfg_start, schedule)
    imported: dict[str, JsonValue] = {
        "gpt": {
            **source_of(gpt, config.gpt, config.gpt_weights),
            "size": size_name(gpt_config),
        },
        "tokenizer": source_of(vq, config.tokenizer, config.tokenizer_weights),
    }
    mapping, partitions = None, []
    if "mapping" in files:
        mapping = read_mapping(files["mapping"])
        cluster_size = read_cluster_size(gpt, config.cluster_size)
        partitions.append(clusters_of(mapping, cluster_size))
        imported["mapping"] = {
            **address_of(config.mapping),
            "file": files["mapping"].name,
            "sha256": sha256_file(files["mapping"]),
            "cluster_size": cluster_size,
        }
    parts = BundleParts(
        transformer=gpt_of(gpt, gpt_config, mapping),
        tokenizer=tokenizer_of(vq, vq_config),
        prior=ClusterMap.identity(vq_config.num_codes),
        partitions=partitions,
    )
    card = ModelCard(
        name=config.name,
        version=draft.version,
        created=datetime.now(UTC).replace(microsecond=0),
        class_names=read_class_names(gpt_config.num_classes, config.classes),
        defaults=Defaults(
            cfg_scale=config.cfg_scale or suggested_cfg(gpt_config),
            cfg_schedule=schedule,
            cfg_start=DEFAULT_CFG_START if config.cfg_start is None else config.cfg_start,
        ),
        provenance={
            "note": config.note,
            "imported": imported,
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
    return parts.tokenizer


def suggested_cfg(config: GPTConfig) -> float:
    """CFG scale that LlamaGen or GigaTok suggests for a transformer of that size."""
    suggested = GIGATOK_CFG if config.positions == "learned" else SUGGESTED_CFG
    return suggested.get(size_name(config) or "", OTHER_CFG)


def address_of(source: str | None) -> dict[str, JsonValue]:
    """Where others can fetch a file, if they can."""
    return {"address": without_secrets(source)} if source is not None and is_address(source) else {}


def source_of(checkpoint: CheckpointFile, source: str, weights: Weights) -> dict[str, JsonValue]:
    """What a manifest says of a checkpoint."""
    return {
        **address_of(source),
        "file": checkpoint.path.name,
        "sha256": sha256_file(checkpoint.path),
        "weights": weights,
        "steps": checkpoint.steps,
        "arguments": dict(checkpoint.arguments),
    }


def import_tokenizer(
    config: ImportTokenizerConfig, report: ProgressCallback = no_progress
) -> dict[str, Any]:
    """Write what ``masc tokenizer train`` would have; returns metrics if there are images.

    It has ``tokenizer.safetensors``, ``config.json``, ``metrics.json`` and, given images,
    ``reconstructions.png``; ``codes extract`` and ``prior build`` go on from there.

    Raises
    ------
    ConfigError : the folder is in use or cannot be written, or the images do not fit the tokenizer
    ArtifactError
        The file is missing, damaged, or holds something else; or the folder has a tokenizer.
    """
    set_threads(config.threads)
    checkpoint = CheckpointFile.open(local_file(config.source, report), config.weights)
    sizes = read_vq_config(checkpoint, config.tokenizer_heads)
    model = tokenizer_of(checkpoint, sizes).float()
    with lock_folder(config.out):
        path = config.out / TOKENIZER_FILE
        if path.exists():
            raise ArtifactError(path, "exists already; choose another folder or remove this one")
        metrics = _measure(config, model)
        write_json(config.out / "metrics.json", metrics)
        write_json(
            config.out / "config.json",
            {
                **asdict(model.config),
                "imported": source_of(checkpoint, config.source, config.weights),
                "made_with": made_with(),
            },
        )
        save_model(path, model)  # last: a folder with it is complete
    return metrics


def _measure(config: ImportTokenizerConfig, model: VQModel) -> dict[str, Any]:
    if config.val_data is None:
        return {}
    model.config.grid_size(config.image_size)
    images = open_images(config.val_data, config)
    pixels = images.read(config.image_size, images.spread(config.val_images)).pixels
    reconstruction_sheet(model, pixels).save(config.out / "reconstructions.png")
    return reconstruction_metrics(model, pixels)
