"""Measure what a tokenizer keeps of images.

::

    masc tokenizer evaluate runs/cifar10/tokenizer --data data/cifar10/test --image-size 32 \
        --classifier runs/cifar10/classifier --inception-weights weights/inception.safetensors

Images go through the tokenizer and back, and are compared with themselves, pixel by pixel, and
with real ones, as generated images are: the Fréchet distance in Inception's features is known as
rFID, and is about the least that a model of these codes can have.
Writes ``evaluation.json`` and ``evaluation.png``, originals above reconstructions, if there is a
place for them.

Legend: N images, S pixels a side.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from masc_core.arrays import IntArray
from masc_core.bundle.manifest import MANIFEST_FILE, read_manifest
from masc_core.device import resolve_device
from masc_core.errors import ConfigError
from masc_core.images import Pixels
from masc_core.io.files import atomic_path, read_json, write_json, writing
from masc_core.progress import ProgressCallback, no_progress
from training.data.codebook_source import TrainedTokenizer
from training.data.images import open_images
from training.loop.run_dir import lock_folder
from training.metrics.definitions import definitions
from training.metrics.feature_stats import FeatureStats, caution, compare, extract
from training.metrics.fidelity import MIN_IMAGES, Extractor
from training.metrics.reconstruction import ReconstructionSums, reconstruct, reconstruction_sheet
from training.metrics.reference import EXTRACTED_AT_ONCE, Reference, open_real
from training.metrics.samples import Samples
from training.provenance import made_with
from training.stages.configs import EvaluateTokenizerConfig
from training.stages.extractors import check_reference, open_extractors, reference_of

logger = logging.getLogger(__name__)

SHEET_IMAGES = 32
DEFINITIONS = {  # where they differ from those of generated images
    "images": "Real images that went through the tokenizer.",
    "class_agreement": "Share of the reconstructions to which the classifier gives the class of "
    "the image.",
    "class_agreement_efficientnet": "Share of the reconstructions to which EfficientNet-Lite0, "
    "trained on ImageNet and not here, gives it among the classes of the images.",
    "originals": "The same metrics of the original images. Distances, precision and recall are of "
    "reconstructions from the reference, or from the originals where there is none.",
}


def evaluate_tokenizer(
    config: EvaluateTokenizerConfig, report: ProgressCallback = no_progress
) -> dict[str, Any]:
    """Measure, and write what is found.

    Returns
    -------
    Metrics by name, with ``settings`` and ``definitions``. Where there is a reference,
    ``originals`` holds those of the images themselves: what reconstructions are to be held against.

    Raises
    ------
    ArtifactError : tokenizer, images, reference or weights are missing or damaged
    ConfigError : the images are too few, do not fit the tokenizer, or nothing is there to compare
        them by
    """
    with ExitStack() as held:
        if config.out is not None:
            held.enter_context(lock_folder(config.out))
        return _evaluate(config, report)


def _evaluate(config: EvaluateTokenizerConfig, report: ProgressCallback) -> dict[str, Any]:
    device = resolve_device(config.device)
    tokenizer = TrainedTokenizer.open(config.tokenizer, with_encoder=True)
    model, size = tokenizer.model.to(device), _image_size(config)
    model.config.grid_size(size)
    images = open_images(config.data, config)
    extractors = open_extractors(config, images.class_names, device, report)
    chosen = images.spread(config.images or len(images))
    _check(config, len(chosen))
    real = None
    if config.reference is not None:
        real = open_real(config.reference, size, extractors, config)

    sums = ReconstructionSums(model.config.num_codes)
    originals, reconstructions = FeatureStats((1, 1)), FeatureStats((1, 1))
    for start in range(0, len(chosen), EXTRACTED_AT_ONCE):
        read = images.read(size, chosen[start : start + EXTRACTED_AT_ONCE])
        if len(read.pixels):
            decoded, codes = reconstruct(model, read.pixels)
            sums.add(read.pixels, decoded, codes)
            originals.add(_extract(read.pixels, read.labels, extractors))
            reconstructions.add(_extract(decoded, read.labels, extractors))
        report(min(start + EXTRACTED_AT_ONCE, len(chosen)), len(chosen), "images")
    if not originals.count:
        raise ConfigError(f"data: none of the images in {config.data} can be read")

    metrics: dict[str, Any] = {"images": originals.count, **sums.metrics()}
    metrics["code_entropy_bits"] = float(np.log2(metrics["codebook_perplexity"]))
    metrics |= reconstructions.agreement()
    held_against, cautions = originals.agreement(), list[str]()
    for extractor in extractors:
        label = extractor.label
        own, seen = reconstructions.of(label), originals.of(label)
        if label != "vgg":
            cautions += caution(label, own[0])
        if real is None:
            metrics |= compare(label, *own, Reference.of(seen[0]), config.resamples)
            continue
        reference = reference_of(config, real, extractor, size, report)
        metrics |= compare(label, *own, reference, config.resamples)
        held_against |= compare(label, *seen, reference, config.resamples)
    if cautions:
        logger.warning("%s", "; ".join(cautions))
        metrics["cautions"] = cautions
    names = {*metrics, "originals"}
    metrics = {
        "settings": _settings(config, tokenizer, size, extractors, device),
        "definitions": definitions(metrics)
        | {name: text for name, text in DEFINITIONS.items() if name in names},
        **metrics,
        "originals": held_against,
    }
    if config.out is not None:
        shown = images.read(size, images.spread(SHEET_IMAGES)).pixels
        _write(config.out, metrics, reconstruction_sheet(model, shown) if len(shown) else None)
    return metrics


def _settings(
    config: EvaluateTokenizerConfig,
    tokenizer: TrainedTokenizer,
    image_size: int,
    extractors: list[Extractor],
    device: torch.device,
) -> dict[str, Any]:
    return {
        "tokenizer": tokenizer.name,
        "tokenizer_sha256": tokenizer.sha256,
        "data": str(config.data),
        "images": config.images,
        "image_size": image_size,
        "reference": str(config.reference) if config.reference else None,
        "resamples": config.resamples,
        "exif_orientation": config.exif_orientation,
        "background": config.background,
        "extractors": {extractor.label: extractor.weights_sha256 for extractor in extractors},
        "device": str(device),
        "made_with": made_with("torch-fidelity", "torchvision"),
    }


def _extract(pixels: Pixels, labels: IntArray, extractors: list[Extractor]) -> dict[str, Tensor]:
    """As `extract`; nothing was predicted, so there are no entropies."""
    return extract(Samples(pixels, labels, np.zeros((len(pixels), 1, 1), np.float32)), extractors)


def _write(out: Path, metrics: dict[str, Any], sheet: Image.Image | None) -> None:
    with writing(out):
        write_json(out / "evaluation.json", metrics, indent=1)
        if sheet is not None:
            with atomic_path(out / "evaluation.png") as temporary:
                sheet.save(temporary)


def _image_size(config: EvaluateTokenizerConfig) -> int:
    """The size that is asked for, or that the tokenizer was trained for."""
    if config.image_size is not None:
        return config.image_size
    folder = config.tokenizer if config.tokenizer.is_dir() else config.tokenizer.parent
    try:
        if (folder / MANIFEST_FILE).is_file():
            return read_manifest(folder).image_size
        return int(read_json(folder / "config.json")["image_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"image_size: is needed, for {folder} does not say what size the tokenizer is for"
        ) from error


def _check(config: EvaluateTokenizerConfig, count: int) -> None:
    check_reference(config, config.reference)
    if config.has_judges and count < MIN_IMAGES:
        raise ConfigError(f"images: {count} images are too few to compare")
