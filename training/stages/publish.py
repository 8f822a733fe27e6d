"""Publish a model: trained runs and what was measured become a version under the models folder.

::

    masc models publish training/configs/cifar10/publish.toml

The metrics in the manifest are measured on the bundle as it will be served, with its weights in the
precision of the file. It is listed once all of that is done, and whole. A version is never changed:
publish another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from masc_core.bundle.manifest import (
    COMPLETER_FILE,
    MANIFEST_FILE,
    PRIOR_FILE,
    REFINER_FILE,
    TOKENIZER_FILE,
    TRANSFORMER_FILE,
    Defaults,
    Manifest,
    ModelCard,
    check_class_names,
    read_manifest,
)
from masc_core.bundle.read import Bundle
from masc_core.bundle.write import BundleParts, draft_version
from masc_core.errors import ConfigError
from masc_core.io.files import read_json, sha256_file
from masc_core.models.weights import (
    load_completer,
    load_refiner,
    load_transformer,
    read_inputs,
)
from masc_core.prior import ClusterMap
from masc_core.progress import ProgressCallback, no_progress
from masc_core.sampling.cfg_schedule import check_cfg_start
from masc_core.sampling.params import CODE_SETTINGS, SamplingParams, check_cluster_filters
from masc_core.settings import models_dir
from object_storage.registry import open_registry
from training.config import set_threads
from training.data.cluster_data import PARTITION, partition_sha256
from training.data.code_cache import CodeCache, CodeIndex
from training.data.codebook_source import TrainedTokenizer
from training.metrics.bundle_metrics import (
    class_agreement,
    codebook_files,
    first_images,
    seconds_per_image,
)
from training.metrics.classifier import classifier_accuracy, load_classifier
from training.provenance import made_with
from training.stages.configs import PublishConfig

# What an evaluation holds beside metrics of the images that the model makes.
LEFT_OUT = {"curves", "definitions"}
# That a bundle's tokenizer keeps.
TOKENIZER_METRICS = {"psnr", "ssim", "lpips", "efficientnet", "codebook_usage"}


def publish(config: PublishConfig, report: ProgressCallback = no_progress) -> Manifest:
    """Measure and write a version, and make it the active one.

    Raises
    ------
    ConfigError
        The parts do not belong together.
    ArtifactError
        A part is missing or damaged, or the version exists.
    """
    set_threads(config.threads)
    registry = open_registry(models_dir(config.models))
    for decoding, part in (("refine", "refiner"), ("complete", "completer")):
        if config.decoding == decoding and getattr(config, part) is None:
            raise ConfigError(f"decoding: {decoding} needs a {part}")
    chosen = {name: getattr(config, name) for name in Defaults.model_fields}
    defaults = {name: value for name, value in chosen.items() if value is not None}
    check_cfg_start(config.cfg_start, config.cfg_schedule)
    for name in CODE_SETTINGS:
        if name in defaults and config.completer is None:
            raise ConfigError(f"{name}: needs a completer")
    runs = TrainedRuns(**{part.name: getattr(config, part.name) for part in fields(TrainedRuns)})
    parts, class_names = runs.load()
    params = SamplingParams(class_id=0, seed=0, **defaults)
    check_cluster_filters(params, has_partition=bool(parts.partitions))
    check_class_names(class_names, f"codes: classes of {config.codes}")
    with draft_version(registry, config.name, config.version) as draft:
        card = ModelCard(
            name=config.name,
            version=draft.version,
            created=datetime.now(UTC).replace(microsecond=0),
            class_names=class_names,
            defaults=Defaults(**defaults),
            provenance={"note": config.note, **runs.provenance(), "made_with": made_with()},
            metrics=runs.metrics(),
        )
        written = draft.write(card, parts, with_encoder=config.with_encoder)
        evaluation = _evaluation(config, written)
        bundle = draft.load(config.device)
        metrics = _measure(
            config, bundle, report, with_agreement="class_agreement" not in evaluation
        )
        codebook = codebook_files(parts.tokenizer, bundle, config.shuffles, report)
        samples = first_images(bundle, num_images=config.samples)
        manifest = draft.finish(metrics | evaluation, samples, codebook)
    if config.activate:
        registry.activate(manifest.name, manifest.version)
    return manifest


@dataclass(frozen=True, slots=True)
class TrainedRuns:
    """Folders of the runs that a model is made of.

    Every run names by hash what it was trained from, so parts that do not belong together are
    refused however much their sizes agree.

    Attributes
    ----------
    tokenizer : of the tokenizer run, or of the bundle whose tokenizer made the codes
    prior : None for the flat vocabulary
    codes : cache of the training images
    transformer : of the transformer run
    refiner, completer : of the runs of these, if there are any
    """

    tokenizer: Path
    prior: Path | None
    codes: Path
    transformer: Path
    refiner: Path | None = None
    completer: Path | None = None

    def load(self) -> tuple[BundleParts, tuple[str, ...]]:
        """What a bundle is made of, and the names of the classes; errors as of `publish`."""
        tokenizer = TrainedTokenizer.open(self.tokenizer)
        cache = CodeCache.open(self.codes)
        if self.prior is None:
            prior = ClusterMap.identity(tokenizer.model.config.num_codes)
        else:
            prior = ClusterMap.load(self.prior / PRIOR_FILE)
        model = load_transformer(self.transformer / TRANSFORMER_FILE)
        refiner = None if self.refiner is None else load_refiner(self.refiner / REFINER_FILE)
        completer = (
            None if self.completer is None else load_completer(self.completer / COMPLETER_FILE)
        )
        self._check_origin(tokenizer.sha256, cache.index)
        parts = BundleParts(
            model, tokenizer.model, prior, cache.counts(), refiner, self._partitions(), completer
        )
        return parts, cache.index.class_names

    def metrics(self) -> dict[str, JsonValue]:
        """What the runs measured on validation images; of the refiner, say, under its name."""
        metrics = self._tokenizer_metrics() | _read_values(self.transformer / "metrics.json")
        for name, run in (("refiner", self.refiner), ("completer", self.completer)):
            if run is not None:
                metrics[name] = _without_objective(_read_values(run / "metrics.json"))
        return _without_objective(metrics)

    def provenance(self) -> dict[str, JsonValue]:
        """How the parts were trained, from what, and what came of it."""
        provenance: dict[str, Any] = {"tokenizer": self._tokenizer_origin()}
        weights = {"tokenizer": self._tokenizer_sha256()}
        trained = {"transformer": self.transformer / TRANSFORMER_FILE}
        if self.refiner is not None:
            trained["refiner"] = self.refiner / REFINER_FILE
        if self.completer is not None:
            trained["completer"] = self.completer / COMPLETER_FILE
        for name, path in trained.items():
            config = _read_values(path.parent / "config.json")
            provenance[name] = config | {"inputs": read_inputs(path)}
            weights[name] = sha256_file(path)
        return provenance | {"trained_weights": weights}

    def _partitions(self) -> list[ClusterMap]:
        """What the transformer's loss knew of, which its run keeps beside the weights."""
        partitions = []
        for name, sha256 in read_inputs(self.transformer / TRANSFORMER_FILE).items():
            if name.startswith(PARTITION):
                path = self.transformer / f"{name}.npz"
                partitions.append(ClusterMap.load(path))
                if partition_sha256(partitions[-1]) != sha256:
                    raise ConfigError(
                        f"transformer: was trained with another partition than {path}"
                    )
        return partitions

    @property
    def _is_bundle(self) -> bool:
        return (self.tokenizer / MANIFEST_FILE).is_file()

    def _check_origin(self, tokenizer: str, codes: CodeIndex) -> None:
        """Raise unless all comes from this tokenizer and prior, the refiner from both models.

        A completer knows no transformer, but the classes of its images.
        """
        if codes.tokenizer_sha256 != tokenizer:
            raise ConfigError("codes: were made by another tokenizer")
        prior = "identity" if self.prior is None else sha256_file(self.prior / PRIOR_FILE)
        made_from = {"tokenizer": tokenizer, "prior": prior}
        transformer = self.transformer / TRANSFORMER_FILE
        inputs = read_inputs(transformer)
        _require_origin("transformer", inputs, made_from)
        if inputs.get("codes") != codes.files_sha256:
            trained_on = _read_values(self.transformer / "config.json").get("codes")
            raise ConfigError(
                f"codes: {self.codes} is of other images than the transformer was trained on, "
                f"those of {trained_on}"
            )
        if self.completer is not None:
            images = {"set of codes": codes.files_sha256}
            found = read_inputs(self.completer / COMPLETER_FILE)
            found["set of codes"] = found.get("codes", "")
            _require_origin("completer", found, made_from | images)
        if self.refiner is not None:
            made_from["transformer"] = sha256_file(transformer)
            _require_origin("refiner", read_inputs(self.refiner / REFINER_FILE), made_from)

    def _tokenizer_sha256(self) -> str:
        if self._is_bundle:
            return read_manifest(self.tokenizer).tokenizer_sha256
        return sha256_file(self.tokenizer / TOKENIZER_FILE)

    def _tokenizer_origin(self) -> dict[str, Any]:
        if not self._is_bundle:
            return _read_values(self.tokenizer / "config.json")
        manifest = read_manifest(self.tokenizer)
        return {
            "bundle": f"{manifest.name} {manifest.version}",
            "provenance": manifest.provenance.get("tokenizer"),
            **{key: manifest.provenance[key] for key in ("encoder",) if key in manifest.provenance},
        }

    def _tokenizer_metrics(self) -> dict[str, Any]:
        if not self._is_bundle:
            return _read_values(self.tokenizer / "metrics.json")
        manifest = read_manifest(self.tokenizer)
        # An encoder that was trained afterwards has figures of its own.
        encoder = manifest.provenance.get("encoder")
        metrics = encoder.get("metrics") if isinstance(encoder, dict) else manifest.metrics
        if not isinstance(metrics, dict):
            return {}
        return {key: metrics[key] for key in TOKENIZER_METRICS & metrics.keys()}


def _require_origin(part: str, inputs: Mapping[str, str], made_from: Mapping[str, str]) -> None:
    """Raise a `ConfigError` unless a part was trained with all of that; it names what differs."""
    others = [f"another {name}" for name, sha256 in made_from.items() if inputs.get(name) != sha256]
    if others:
        raise ConfigError(f"{part}: was trained with {' and '.join(others)}")


def _measure(
    config: PublishConfig, bundle: Bundle, report: ProgressCallback, *, with_agreement: bool
) -> dict[str, JsonValue]:
    """Speed and, unless an evaluation has it, class agreement."""
    metrics: dict[str, Any] = {"device": str(bundle.device), **seconds_per_image(bundle)}
    if config.classifier is not None and with_agreement:
        classes = bundle.manifest.class_names
        classifier = load_classifier(config.classifier, classes).to(bundle.device)
        metrics["classifier_accuracy"] = classifier_accuracy(config.classifier)
        metrics |= class_agreement(bundle, classifier, config.images_per_class, report=report)
    return metrics


def _evaluation(config: PublishConfig, written: Manifest) -> dict[str, JsonValue]:
    """Metrics of the images of an evaluation; its settings under one key."""
    if config.evaluation is None:
        return {}
    metrics = _read_values(config.evaluation)
    settings = metrics.pop("settings", None)
    if not isinstance(settings, dict) or "weights_sha256" not in settings:
        raise ConfigError(f"evaluation: {config.evaluation} does not tell which weights it is of")
    if settings["weights_sha256"] != written.weights_sha256:
        raise ConfigError(f"evaluation: {config.evaluation} is of other weights than these")
    # Older evaluations, of models without partitions, say nothing of any.
    if settings.get("partitions", {}) != written.partitions_sha256:
        raise ConfigError(f"evaluation: {config.evaluation} is of other partitions than these")
    kept = {k: v for k, v in metrics.items() if k not in LEFT_OUT and "seconds" not in k}
    if "class_agreement" in kept:
        kept["class_agreement_images"] = kept["images"]
    return {**kept, "evaluation": settings}


def _read_values(path: Path) -> dict[str, Any]:
    """Names and values of a run's file; a ConfigError where it cannot be read, or has a NaN."""
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); is the run finished?") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds no names with values")
    return value


def _without_objective(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metrics.items() if key != "objective"}
