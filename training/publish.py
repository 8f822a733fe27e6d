"""Publish a model: trained parts and measured figures become a version under the models folder.

::

    masc models publish training/configs/cifar10/publish.toml

The figures in the manifest are measured on the bundle as it will be served, with its weights in the
precision of the file. A version is never changed: publish another one.
"""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from masc_core.bundle import Bundle, BundleParts, load_bundle, save_bundle
from masc_core.device import choose_dtype, resolve_device
from masc_core.errors import ArtifactError, ConfigError
from masc_core.files import sha256_file
from masc_core.manifest import Decoding, Defaults, Manifest, ModelCard, PlainName
from masc_core.prior import ClusterMap
from masc_core.registry import Registry
from masc_core.settings import models_dir
from masc_core.weights import load_tokenizer, load_transformer, transformer_inputs
from training.classifier import load_classifier
from training.code_cache import CodeCache
from training.config import set_threads
from training.evaluation import class_agreement, first_images, seconds_per_image
from training.loop import Report, no_report


class PublishConfig(BaseModel):
    """Keys of a publication."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: PlainName = Field(description="name of the model")
    version: PlainName = Field(description="name of the version")
    models: Path | None = Field(
        None, description="folder of the bundles; MASC_MODELS_DIR, or models"
    )
    tokenizer: Path = Field(description="folder of the tokenizer run")
    prior: Path | None = Field(None, description="folder of the prior; flat vocabulary without it")
    codes: Path = Field(description="code cache of the training images")
    transformer: Path = Field(description="folder of the transformer run")
    classifier: Path | None = Field(
        None, description="folder of a classifier run, for class agreement"
    )
    images_per_class: int = Field(100, ge=1, description="images that the classifier judges")
    cfg_scale: float = Field(1.0, ge=1, le=20, description="default CFG scale")
    decoding: Decoding = Field("uniform", description="default in-cluster decoding")
    note: str = Field("", description="where the model comes from, for its manifest")
    with_encoder: bool = Field(default=False, description="keep the tokenizer's encoder")
    activate: bool = Field(default=True, description="serve this version from now on")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    threads: int = Field(0, ge=0, description="CPU threads; 0 leaves the choice to torch")


def publish(config: PublishConfig, report: Report = no_report) -> Manifest:
    """Measure and write a version, and make it the active one.

    Raises
    ------
    ConfigError
        The parts do not belong together.
    ArtifactError
        A part is missing or damaged, or the version exists.
    """
    set_threads(config.threads)
    models = models_dir(config.models)
    folder = models / config.name / config.version
    if folder.exists():
        raise ArtifactError(folder, "exists already; a published version is never changed")
    parts, class_names = _parts(config)
    card = ModelCard(
        name=config.name,
        version=config.version,
        created=datetime.now(UTC).replace(microsecond=0),
        class_names=class_names,
        defaults=Defaults(cfg_scale=config.cfg_scale, decoding=config.decoding),
        provenance=_provenance(config),
        metrics=_run_metrics(config),
    )
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / config.version
        save_bundle(draft, card, parts)
        device = resolve_device(config.device)
        bundle = load_bundle(draft, device, choose_dtype("auto", device))
        card = card.model_copy(update={"metrics": card.metrics | _measure(config, bundle, report)})
        samples = first_images(bundle)
    final = BundleParts(parts.model, parts.tokenizer, parts.prior, parts.counts, samples)
    manifest = save_bundle(folder, card, final, with_encoder=config.with_encoder)
    if config.activate:
        Registry(models).activate(config.name, config.version)
    return manifest


def _parts(config: PublishConfig) -> tuple[BundleParts, tuple[str, ...]]:
    tokenizer = load_tokenizer(config.tokenizer / "tokenizer.safetensors")
    cache = CodeCache.open(config.codes)
    prior = (
        ClusterMap.load(config.prior / "prior.npz")
        if config.prior
        else ClusterMap.identity(tokenizer.config.num_codes)
    )
    model = load_transformer(config.transformer / "transformer.safetensors")
    _check_origin(config, cache.index.tokenizer_sha256)
    return BundleParts(model, tokenizer, prior, cache.counts()), cache.index.class_names


def _check_origin(config: PublishConfig, codes_of: str) -> None:
    """Raise unless codes and transformer come from this tokenizer, and it from this prior."""
    tokenizer = sha256_file(config.tokenizer / "tokenizer.safetensors")
    if codes_of != tokenizer:
        raise ConfigError("codes: were made by another tokenizer")
    prior = sha256_file(config.prior / "prior.npz") if config.prior else "identity"
    trained = transformer_inputs(config.transformer / "transformer.safetensors")
    if (trained.get("tokenizer"), trained.get("prior")) != (tokenizer, prior):
        raise ConfigError("transformer: was trained with another tokenizer or another prior")


def _measure(config: PublishConfig, bundle: Bundle, report: Report) -> dict[str, JsonValue]:
    figures: dict[str, Any] = {"device": str(bundle.device), **seconds_per_image(bundle)}
    if config.classifier is not None:
        classes = bundle.manifest.class_names
        classifier = load_classifier(config.classifier, classes).to(bundle.device)
        figures["classifier_accuracy"] = _read(config.classifier / "metrics.json")["accuracy"]
        figures |= class_agreement(bundle, classifier, config.images_per_class, report=report)
    return figures


def _run_metrics(config: PublishConfig) -> dict[str, JsonValue]:
    """What tokenizer and transformer runs measured on validation images."""
    tokenizer = _read(config.tokenizer / "metrics.json")
    transformer = _read(config.transformer / "metrics.json")
    return {key: value for key, value in {**tokenizer, **transformer}.items() if key != "objective"}


def _provenance(config: PublishConfig) -> dict[str, JsonValue]:
    return {
        "note": config.note,
        "torch": torch.__version__,
        "tokenizer": _read(config.tokenizer / "config.json"),
        "transformer": _read(config.transformer / "config.json")
        | {"inputs": dict(transformer_inputs(config.transformer / "transformer.safetensors"))},
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); is the run finished?") from error
    return value
