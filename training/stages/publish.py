"""Publish a model: trained parts and measured figures become a version under the models folder.

::

    masc models publish training/configs/cifar10/publish.toml

The figures in the manifest are measured on the bundle as it will be served, with its weights in the
precision of the file. It is listed once all of that is done, and whole. A version is never changed:
publish another one.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from masc_core.bundle.manifest import (
    Decoding,
    Defaults,
    Manifest,
    ModelCard,
    PlainName,
)
from masc_core.bundle.read import Bundle
from masc_core.bundle.registry import Registry
from masc_core.bundle.write import draft_version
from masc_core.errors import ConfigError
from masc_core.settings import models_dir
from training.config import set_threads
from training.loop.stage import Report, no_report
from training.metrics.classifier import classifier_accuracy, load_classifier
from training.metrics.table import class_agreement, first_images, seconds_per_image
from training.provenance import made_with
from training.studies.pictures import codebook_files
from training.trained_runs import TrainedRuns, read_figures

# What an evaluation says beside figures of the images that the model makes.
LEFT_OUT = {"curves", "definitions"}


class PublishConfig(BaseModel):
    """Keys of a publication."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: PlainName = Field(description="name of the model")
    version: PlainName | None = Field(
        None, description="name of the version; the next number without it"
    )
    models: Path | None = Field(
        None, description="folder of the bundles; MASC_MODELS_DIR, or models"
    )
    tokenizer: Path = Field(
        description="folder of the tokenizer run, or of the bundle whose tokenizer made the codes"
    )
    prior: Path | None = Field(None, description="folder of the prior; flat vocabulary without it")
    codes: Path = Field(description="code cache of the training images")
    transformer: Path = Field(description="folder of the transformer run")
    refiner: Path | None = Field(
        None, description="folder of the refiner run; offers refine decoding"
    )
    classifier: Path | None = Field(
        None, description="folder of a classifier run, for class agreement"
    )
    evaluation: Path | None = Field(
        None,
        description="evaluation.json of masc evaluate on the same weights, published before as a "
        "candidate; its figures are taken over",
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
    if config.decoding == "refine" and config.refiner is None:
        raise ConfigError("decoding: refine needs a refiner")
    runs = TrainedRuns(
        config.tokenizer, config.prior, config.codes, config.transformer, config.refiner
    )
    parts, class_names = runs.load()
    with draft_version(models, config.name, config.version) as draft:
        card = ModelCard(
            name=config.name,
            version=draft.version,
            created=datetime.now(UTC).replace(microsecond=0),
            class_names=class_names,
            defaults=Defaults(cfg_scale=config.cfg_scale, decoding=config.decoding),
            provenance={"note": config.note, **runs.provenance(), "made_with": made_with()},
            metrics=runs.metrics(),
        )
        written = draft.write(card, parts, with_encoder=config.with_encoder)
        evaluation = _evaluation(config, written)
        bundle = draft.load(config.device)
        figures = _measure(config, bundle, report, judged="class_agreement" in evaluation)
        figures |= evaluation
        pictures = codebook_files(parts.tokenizer, bundle.tokenizer, report)
        manifest = draft.finish(figures, first_images(bundle), pictures)
    if config.activate:
        Registry(models).activate(manifest.name, manifest.version)
    return manifest


def _measure(
    config: PublishConfig, bundle: Bundle, report: Report, *, judged: bool
) -> dict[str, JsonValue]:
    """Speed and, unless an evaluation has judged the images, class agreement."""
    figures: dict[str, Any] = {"device": str(bundle.device), **seconds_per_image(bundle)}
    if config.classifier is not None and not judged:
        classes = bundle.manifest.class_names
        classifier = load_classifier(config.classifier, classes).to(bundle.device)
        figures["classifier_accuracy"] = classifier_accuracy(config.classifier)
        figures |= class_agreement(bundle, classifier, config.images_per_class, report=report)
    return figures


def _evaluation(config: PublishConfig, written: Manifest) -> dict[str, JsonValue]:
    """Figures of the images of an evaluation; its settings under one key."""
    if config.evaluation is None:
        return {}
    figures = read_figures(config.evaluation)
    settings = figures.pop("settings", None)
    if not isinstance(settings, dict) or "weights_sha256" not in settings:
        raise ConfigError(f"evaluation: {config.evaluation} does not tell which weights it is of")
    if settings["weights_sha256"] != written.weights_sha256:
        raise ConfigError(f"evaluation: {config.evaluation} is of other weights than these")
    taken = {k: v for k, v in figures.items() if k not in LEFT_OUT and "seconds" not in k}
    if "class_agreement" in taken:
        taken["class_agreement_images"] = taken["images"]
    return {**taken, "evaluation": settings}
