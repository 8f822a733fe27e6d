r"""Measure a published model.

::

    masc evaluate cifar10 --classifier runs/cifar10/classifier --reference data/cifar10/test
    masc evaluate llamagen-l --images-per-class 50 --cfg-scale 2.0 \
        --inception-weights weights-inception-2015-12-05-6726825d.pth \
        --reference VIRTUAL_imagenet256_labeled.npz

Images of every class are generated and go through each extractor that there are weights for:
Inception gives FID, Inception score, kernel distance, precision and recall; VGG16 precision and
recall; a classifier of the real images class agreement and a Fréchet distance in its features, and
so does EfficientNet-Lite0 of ImageNet, which never saw them.
With the codes of real images the model's entropy on them is measured as well. Under torchrun all
processes generate; the first one does the rest.

With ``out`` an evaluation that was interrupted goes on: what it has so far lies in ``unfinished/``
there until ``evaluation.json`` is written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masc_core.bundle.manifest import PRIOR_FILE, TRANSFORMER_FILE, WEIGHT_SUFFIXES, Defaults
from masc_core.bundle.read import Bundle, load_bundle
from masc_core.device import choose_dtype
from masc_core.errors import ConfigError
from masc_core.images import encode_image
from masc_core.io.files import atomic_write, read_json, sha256_file, write_json
from masc_core.models.gigatok import latent_groups
from masc_core.models.weights import load_transformer, read_inputs
from masc_core.progress import ProgressCallback, no_progress
from masc_core.sampling.cfg_schedule import WITH_START
from masc_core.sampling.params import CODE_SETTINGS, SamplingParams, check_given
from masc_core.settings import ModelSettings, read_settings
from object_storage.registry import open_registry
from training.changes import require_same_classes
from training.data.code_cache import CodeCache, with_cached_options
from training.loop.distributed import Ranks, init_distributed
from training.loop.run_dir import lock_folder
from training.metrics.bundle_metrics import default_params, seconds_per_image
from training.metrics.classifier import (
    classifier_accuracy,
)
from training.metrics.definitions import definitions
from training.metrics.feature_stats import FeatureStats, caution, compare, extract
from training.metrics.fidelity import MIN_IMAGES, Extractor
from training.metrics.partial_results import PartialResults
from training.metrics.reference import RealImages, RealStatistics, Reference, open_real
from training.metrics.samples import Samples, entropies_shape, image_archive, sample
from training.metrics.teacher_forcing import (
    Curve,
    check_codes,
    check_tokenizer,
    teacher_forced,
    trained_from,
)
from training.plot_png import draw_curves
from training.provenance import made_with
from training.stages.configs import EvaluateConfig
from training.stages.extractors import check_reference, open_extractors, reference_of
from training.stages.initial_weights import weights_path

logger = logging.getLogger(__name__)

FREE_RUNNING = ("free-running entropy", "free-running cluster entropy")


def evaluate(config: EvaluateConfig, report: ProgressCallback = no_progress) -> dict[str, Any]:
    """Measure, and write ``evaluation.json`` and ``curves.png`` if there is a place for them.

    Returns metrics by name, with ``settings``, ``definitions``, and ``curves`` by position; nothing
    on other ranks than the main one.
    """
    chosen = read_settings(
        ModelSettings, {"models_dir": config.models, "default_model": config.model}
    )
    registry = open_registry(chosen.models_dir)
    model = chosen.default_model
    # A version that is named may be the candidate of a model without an active one.
    if config.version is None or model not in registry.names():
        model = registry.default(model)
    folder = registry.path(model, config.version)
    with ExitStack() as held:
        with init_distributed(config.device) as ranks:
            bundle = load_bundle(folder, ranks.device, choose_dtype("auto", ranks.device))
            if config.transformer is not None:
                bundle = _with_transformer(bundle, config.transformer)
            with ranks.raise_on_all_ranks("the evaluation"):
                if ranks.is_main and config.out is not None:
                    held.enter_context(lock_folder(config.out))
                evaluation = _Evaluation(config, bundle, report) if ranks.is_main else None
            if evaluation is None:
                for _ in _samples(config, bundle, ranks):
                    pass
                return {}
            stats = evaluation.generate(ranks)
        return evaluation.finish(stats)


class _Evaluation:
    """One model's metrics on their way."""

    def __init__(self, config: EvaluateConfig, bundle: Bundle, report: ProgressCallback) -> None:
        self.config, self.bundle, self.report = config, bundle, report
        self.total = config.images_per_class * len(bundle.manifest.class_names)
        self._check()
        self.params, self.image_size = _params(config, bundle), _image_size(config, bundle)
        self.cache = CodeCache.open(config.codes) if config.codes else None
        if self.cache is not None:
            check_codes(bundle, self.cache)
            config = self.config = with_cached_options(self.cache.index, config)
        self.extractors = open_extractors(
            config, self.bundle.manifest.class_names, self.bundle.device, report
        )
        self.real: RealImages | RealStatistics | None = None
        if config.reference is not None:
            self.real = open_real(config.reference, self.image_size, self.extractors, config)
        self.unfinished = PartialResults(config.out, self._identity())

    def generate(self, ranks: Ranks) -> FeatureStats:
        """Generate the images that are not there yet, and look at them."""
        config, stats = self.config, FeatureStats(entropies_shape(self.bundle))
        for part in self._parts():
            stats.add(part)
        for batch in _samples(config, self.bundle, ranks, stats.count):
            if config.save_images and config.out is not None:
                _save_images(config.out / "images", stats.count, batch)
            part = extract(batch, self.extractors)
            pixels = {"pixels": torch.from_numpy(batch.pixels)} if config.save_archive else {}
            self.unfinished.save(_part_name(stats.count), part | pixels)
            stats.add(part)
            self.report(stats.count, self.total, "images")
        return stats

    def _parts(self) -> Iterator[dict[str, Tensor]]:
        """What there is of the images, without a gap, in their order."""
        count = 0
        while (part := self.unfinished.load(_part_name(count))) is not None:
            yield part
            count += len(part["labels"])

    def finish(self, stats: FeatureStats) -> dict[str, Any]:
        """All metrics, written if there is a place for them."""
        metrics: dict[str, Any] = dict(seconds_per_image(self.bundle))
        curves: dict[str, Curve] = {}
        if self.cache is not None:
            found = teacher_forced(
                self.bundle, self.cache, self.config.codes_cfg_scale, self.report, self.unfinished
            )
            metrics |= found.metrics(self.bundle.manifest.num_clusters)
            curves["teacher-forced entropy"] = found.entropy
            curves["teacher-forced cross-entropy"] = found.cross_entropy
        if stats.count:
            metrics |= self._free_running(stats)
            for name, sums in zip(FREE_RUNNING, stats.entropies, strict=False):
                curves[name] = sums / stats.count
        cautions: list[str] = []
        for extractor in self.extractors:
            reference = self._reference(extractor)
            if stats.count:
                features, logits = stats.of(extractor.label)
                metrics |= compare(
                    extractor.label, features, logits, reference, self.config.resamples
                )
                if reference is not None and extractor.label != "vgg":
                    cautions += caution(extractor.label, features)
        if cautions:
            logger.warning("%s", "; ".join(cautions))
            metrics["cautions"] = cautions
        if (latent := self.bundle.manifest.latent) is not None:
            sizes = [rows * columns for rows, columns in latent_groups(latent.latent_shape[1])]
            starts = np.cumsum([0, *sizes[:-1]])
            metrics["latent_groups"] = {
                name: (np.add.reduceat(curve, starts) / sizes).tolist()
                for name, curve in curves.items()
            }
        metrics = {"settings": self._settings(), "definitions": definitions(metrics), **metrics}
        metrics["curves"] = {name: curve.tolist() for name, curve in curves.items()}
        self._write(metrics, curves)
        return metrics

    def _check(self) -> None:
        config = self.config
        if config.out is None and (config.save_images or config.save_archive):
            raise ConfigError("out: says where the images go, and is missing")
        if config.save_statistics and (config.out is None or config.reference is None):
            raise ConfigError("save_statistics: needs out, and a reference of images")
        check_reference(config, config.reference)
        if config.reference and 0 < self.total < MIN_IMAGES:
            raise ConfigError(f"images_per_class: {self.total} images are too few to compare")

    def _reference(self, extractor: Extractor) -> Reference | None:
        if self.real is None:
            return None
        reference = reference_of(
            self.config, self.real, extractor, self.image_size, self.report, self.unfinished
        )
        if self.config.save_statistics and self.config.out is not None and reference is not None:
            place = self.config.out / f"statistics-{extractor.label}.npz"
            reference.statistics.save(place, extractor.features_name)
        return reference

    def _free_running(self, stats: FeatureStats) -> dict[str, float]:
        bits, *cluster_bits = (stats.entropies.mean(axis=1) / stats.count).tolist()
        largest = float(np.log2(max(2, self.bundle.manifest.num_clusters)))
        metrics = {"images": stats.count, "entropy_bits": bits, "entropy_ratio": bits / largest}
        metrics |= stats.agreement()
        for k, mean in zip(self.bundle.manifest.partitions, cluster_bits, strict=False):
            metrics[f"free_running_cluster_entropy_bits_{k}"] = mean
            metrics[f"free_running_cluster_entropy_ratio_{k}"] = mean / float(np.log2(max(2, k)))
        if self.config.classifier is not None:
            metrics["classifier_accuracy"] = classifier_accuracy(self.config.classifier)
        return metrics

    def _identity(self) -> dict[str, Any]:
        """What the results depend on: an evaluation goes on where all of it is the same."""
        may_differ = {"model", "version", "device", "made_with"}
        config, index = self.config, self.cache and self.cache.index
        return {
            **{k: v for k, v in self._settings().items() if k not in may_differ},
            "files": {
                name: sha256
                for name, sha256 in self.bundle.manifest.files.items()
                if PurePath(name).suffix in WEIGHT_SUFFIXES and name != TRANSFORMER_FILE
            },
            "codes": index and index.model_dump(mode="json"),
            "reference": self.real and self.real.fingerprint(),
            "save_images": config.save_images,
            "save_archive": config.save_archive,
        }

    def _settings(self) -> dict[str, Any]:
        manifest, config, params = self.bundle.manifest, self.config, self.params
        return {
            "model": manifest.name,
            "version": manifest.version,
            # With another transformer the images are not of the version's weights.
            "weights_sha256": None if config.transformer else manifest.weights_sha256,
            "partitions": manifest.partitions_sha256,
            "transformer": config.transformer
            and {
                "path": str(config.transformer),
                "sha256": sha256_file(weights_path(config.transformer)),
            },
            "images_per_class": config.images_per_class,
            "image_size": self.image_size,
            **{
                name: getattr(params, name)
                for name in Defaults.model_fields
                if name not in CODE_SETTINGS or params.decoding == "complete"
            },
            "cfg_start": params.cfg_start if params.cfg_schedule in WITH_START else None,
            "first_seed": config.seed,
            "codes": str(config.codes) if config.codes else None,
            "codes_cfg_scale": config.codes_cfg_scale if config.codes else None,
            "reference": str(config.reference) if config.reference else None,
            "exif_orientation": config.exif_orientation,
            "background": config.background,
            "extractors": {e.label: e.weights_sha256 for e in self.extractors},
            "device": str(self.bundle.device),
            "dtype": str(self.bundle.dtype).removeprefix("torch."),
            "made_with": made_with("torch-fidelity", "torchvision"),
        }

    def _write(self, metrics: dict[str, Any], curves: dict[str, Curve]) -> None:
        if self.config.out is None:
            return
        if self.config.save_archive:
            place = self.config.out / "samples.npz"
            with image_archive(place, self.total, self.image_size) as append:
                for part in self._parts():
                    append(part["pixels"].numpy())
        write_json(self.config.out / "evaluation.json", metrics, indent=1)
        if curves:
            name = f"{self.bundle.manifest.name} {self.bundle.manifest.version}"
            atomic_write(self.config.out / "curves.png", draw_curves(name, curves))
        self.unfinished.remove()


def _with_transformer(bundle: Bundle, path: Path) -> Bundle:
    """The bundle with the weights of a run, in the same precision.

    A ConfigError where they are of other sizes, another tokenizer or another prior than its own.
    """
    file = weights_path(path)
    model, inputs, manifest = load_transformer(file), read_inputs(file), bundle.manifest
    check_tokenizer(manifest, inputs.get("tokenizer", ""), "transformer")
    # Published is the same prior, but perhaps in another file.
    same = {manifest.files[PRIOR_FILE], trained_from(manifest).get("prior")}
    if manifest.num_clusters == manifest.num_codes:
        same.add("identity")
    if inputs.get("prior", "none") not in same:
        raise ConfigError(f"transformer: {path} was trained over another prior than the model's")
    if (classes := _classes_of_run(path)) is not None:
        require_same_classes("transformer", str(path), classes, "the model", manifest.class_names)
    sizes = {"vocab_size": manifest.num_clusters}
    sizes |= {key: getattr(manifest.gpt, key) for key in ("num_classes", "block_size")}
    for key, value in sizes.items():
        if getattr(model.config, key) != value:
            raise ConfigError(f"transformer: {path} has another {key} than the model")
    model.requires_grad_(requires_grad=False)
    return replace(bundle, transformer=model.to(bundle.device, bundle.dtype))


def _classes_of_run(path: Path) -> list[str] | None:
    """Names of the classes that a run learned, where its folder tells."""
    place = path / "config.json"
    inputs = read_json(place).get("inputs") if place.is_file() else None
    return inputs.get("classes") if isinstance(inputs, dict) else None


def _params(config: EvaluateConfig, bundle: Bundle) -> SamplingParams:
    given = {key: getattr(config, key) for key in Defaults.model_fields}
    changes: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
    params = replace(default_params(bundle), seed=config.seed, **changes)
    check_given(changes, params.cfg_schedule, params.decoding)
    bundle.code_sampler.check(params)
    if config.transformer is not None and params.decoding == "refine":
        raise ConfigError(
            "decoding: the refiner is of the version's own transformer, choose another"
        )
    return params


def _image_size(config: EvaluateConfig, bundle: Bundle) -> int:
    return config.image_size or bundle.manifest.image_size


def _samples(
    config: EvaluateConfig, bundle: Bundle, ranks: Ranks, first: int = 0
) -> Iterator[Samples]:
    """Collective, call on every rank; ``first``, what is there already, is the main one's."""
    return sample(
        bundle,
        _params(config, bundle),
        config.images_per_class,
        batch_size=config.batch_size,
        image_size=_image_size(config, bundle),
        ranks=ranks,
        first=int(*ranks.all_reduce_sum(first)),
    )


def _part_name(first: int) -> str:
    return f"images-{first:09d}"


def _save_images(folder: Path, first: int, batch: Samples) -> None:
    folder.mkdir(exist_ok=True)
    for number, (image, label) in enumerate(zip(batch.pixels, batch.labels, strict=True), first):
        atomic_write(folder / f"{number:06d}-{label:04d}.png", encode_image(image, "png"))
