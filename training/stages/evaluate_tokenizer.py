"""Measure what a tokenizer keeps of images.

::

    masc tokenizer evaluate runs/cifar10/tokenizer --data data/cifar10/test --image-size 32 \
        --classifier runs/cifar10/classifier --inception-weights weights/inception.safetensors

Images go through the tokenizer and back, and are compared with themselves, pixel by pixel, and
with real ones, as generated images are: the Fréchet distance in Inception's features is known as
rFID. A model that was trained on the codes can hardly do better than these images.
Writes ``evaluation.json`` and ``reconstructions.png`` if there is a place for them.

Legend: N images, S pixels a side.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from masc_core.device import resolve_device
from masc_core.errors import ConfigError
from masc_core.io.files import atomic_path, write_json, writing
from masc_core.progress import ProgressCallback, no_progress
from training.data.codebook_source import TrainedTokenizer
from training.data.images import open_images
from training.metrics.definitions import definitions
from training.metrics.feature_stats import FeatureStats, compare, extract
from training.metrics.fidelity import MIN_IMAGES, Extractor
from training.metrics.reconstruction import ReconstructionSums, reconstruct, reconstruction_sheet
from training.metrics.reference import EXTRACTED_AT_ONCE, Reference, open_real
from training.metrics.samples import Samples
from training.provenance import made_with
from training.stages.configs import EvaluateTokenizerConfig
from training.stages.extractors import open_extractors, reference_of

SHEET_IMAGES = 32
DEFINITIONS = {  # where they differ from those of generated images
    "images": "Real images that went through the tokenizer.",
    "class_agreement": "Share of the reconstructions to which the classifier gives the class of "
    "the image.",
    "originals": "The same of the images themselves.",
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
    device = resolve_device(config.device)
    tokenizer = TrainedTokenizer.open(config.tokenizer, with_encoder=True)
    model, size = tokenizer.model.to(device), config.image_size
    model.config.grid_size(size)
    images = open_images(config.data, config)
    extractors = open_extractors(config, images.class_names, device, report)
    chosen = images.spread(config.images or len(images))
    _check(config, len(chosen), extractors)
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
            for stats, pixels in ((originals, read.pixels), (reconstructions, decoded)):
                # Nothing was predicted, so there are no entropies.
                entropies = np.zeros((len(pixels), 1, 1), np.float32)
                stats.add(extract(Samples(pixels, read.labels, entropies), extractors))
        report(min(start + EXTRACTED_AT_ONCE, len(chosen)), len(chosen), "images")
    if not originals.count:
        raise ConfigError(f"data: none of the images in {config.data} can be read")

    metrics: dict[str, Any] = {"images": originals.count, **sums.metrics()}
    metrics["bits_per_position"] = float(np.log2(metrics["codebook_perplexity"]))
    metrics |= reconstructions.agreement()
    held_against = originals.agreement()
    for extractor in extractors:
        own, seen = reconstructions.of(extractor.label), originals.of(extractor.label)
        if real is None:
            metrics |= compare(extractor.label, *own, Reference.of(seen[0]), config.resamples)
            continue
        reference = reference_of(config, real, extractor, size, report)
        metrics |= compare(extractor.label, *own, reference, config.resamples)
        held_against |= compare(extractor.label, *seen, reference, config.resamples)
    metrics = {
        "settings": _settings(config, tokenizer, extractors),
        "definitions": definitions(metrics) | DEFINITIONS,
        **metrics,
        "originals": held_against,
    }
    if config.out is not None:
        sheet = reconstruction_sheet(model, images.read(size, images.spread(SHEET_IMAGES)).pixels)
        with writing(config.out):
            config.out.mkdir(parents=True, exist_ok=True)
            write_json(config.out / "evaluation.json", metrics, indent=1)
            with atomic_path(config.out / "reconstructions.png") as temporary:
                sheet.save(temporary)
    return metrics


def _check(config: EvaluateTokenizerConfig, count: int, extractors: list[Extractor]) -> None:
    if config.reference is not None and not extractors:
        raise ConfigError(
            "reference: needs inception_weights, vgg_weights, a classifier or efficientnet to "
            "compare by"
        )
    if extractors and count < MIN_IMAGES:
        raise ConfigError(f"images: {count} images are too few to compare")


def _settings(
    config: EvaluateTokenizerConfig, tokenizer: TrainedTokenizer, extractors: list[Extractor]
) -> dict[str, Any]:
    return {
        "tokenizer": tokenizer.name,
        "tokenizer_sha256": tokenizer.sha256,
        "data": str(config.data),
        "image_size": config.image_size,
        "reference": str(config.reference) if config.reference else None,
        "exif_orientation": config.exif_orientation,
        "background": config.background,
        "extractors": {extractor.label: extractor.weights_sha256 for extractor in extractors},
        "device": config.device,
        "made_with": made_with("torch-fidelity", "torchvision"),
    }
