"""The extractors that a configuration asks for, and features of real images that are kept.

Legend: S pixels a side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from masc_core.errors import ConfigError
from masc_core.io.files import sha256_file
from masc_core.progress import ProgressCallback, no_progress
from training.config import ImageOptions
from training.downloads import local_file
from training.loop.run_dir import lock_folder
from training.metrics.classifier import CLASSIFIER_FILE, classifier_extractor, load_classifier
from training.metrics.efficientnet import load_efficientnet
from training.metrics.fidelity import Extractor, load_extractor
from training.metrics.partial_results import PartialResults
from training.metrics.reference import RealImages, RealStatistics, Reference
from training.stages.configs import JudgeOptions


def open_extractors(
    options: JudgeOptions,
    class_names: Sequence[str],
    device: torch.device,
    report: ProgressCallback = no_progress,
) -> list[Extractor]:
    """Those that are asked for, which judge images of these classes.

    Raises
    ------
    ArtifactError
        A file of weights is missing or damaged.
    ConfigError
        A classifier is of other classes, or a package is not installed.
    """
    found: list[Extractor] = []
    if options.inception_weights is not None:
        file = local_file(options.inception_weights, report)
        found.append(load_extractor("inception", file, device))
    if options.vgg_weights is not None:
        file = local_file(options.vgg_weights, report)
        found.append(load_extractor("vgg", file, device))
    if options.classifier is not None:
        classifier = load_classifier(options.classifier, tuple(class_names)).to(device)
        weights = sha256_file(options.classifier / CLASSIFIER_FILE)
        found.append(classifier_extractor(classifier, device, weights))
    if options.efficientnet:
        found.append(load_efficientnet(class_names, device))
    return found


def check_reference(options: JudgeOptions, reference: Path | None) -> None:
    """Raise a `ConfigError` where a reference and what it is for do not come together."""
    if reference is not None and not options.has_judges:
        raise ConfigError(
            "reference: needs inception_weights, vgg_weights, a classifier or efficientnet to "
            "compare by"
        )
    if reference is None and options.reference_features is not None:
        raise ConfigError("reference_features: keeps features of a reference, which is missing")


def kept_reference(
    folder: Path,
    real: RealImages | RealStatistics,
    extractor: Extractor,
    image_size: int,
    options: ImageOptions,
    report: ProgressCallback = no_progress,
) -> Reference | None:
    """Features of real images, extracted once and kept in a folder for other evaluations."""
    made_from = {
        "reference": real.fingerprint(),
        "extractor": extractor.weights_sha256,
        "classes": extractor.class_names,
        "image_size": image_size,
        "exif_orientation": options.exif_orientation,
        "background": options.background,
    }
    name = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
    folder = folder / f"{extractor.label}-{name}"
    with lock_folder(folder, wait=True):  # another may be extracting them
        return real.extract(extractor, report, PartialResults(folder, made_from))


def reference_of(
    options: JudgeOptions,
    real: RealImages | RealStatistics,
    extractor: Extractor,
    image_size: int,
    report: ProgressCallback = no_progress,
    unfinished: PartialResults | None = None,
) -> Reference | None:
    """Features of real images, from where the configuration keeps them if it does."""
    if (folder := options.reference_features) is None:
        return real.extract(extractor, report, unfinished)
    return kept_reference(folder, real, extractor, image_size, options, report)
