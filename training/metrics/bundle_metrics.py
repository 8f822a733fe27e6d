"""Metrics of a bundle: class agreement, entropy, speed, and a sheet of what it makes.

Class agreement is the share of generated images that a classifier of real images assigns to the
class that was asked for; chance is one over the number of classes.
"""

from __future__ import annotations

import io
import statistics
import time
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from masc_core.bundle.read import Bundle
from masc_core.images import SAMPLE_COLUMNS, contact_sheet
from masc_core.progress import ProgressCallback, no_progress
from masc_core.sampling.params import SamplingParams
from training.metrics.classifier import predict
from training.metrics.samples import make_images, sample

SHEET_IMAGES = 100


def default_params(bundle: Bundle) -> SamplingParams:
    """What a request for class 0 and seed 0 gets that says nothing else."""
    defaults = bundle.manifest.defaults
    return SamplingParams(class_id=0, seed=0, **dict(defaults))


def class_agreement(
    bundle: Bundle,
    classifier: nn.Module,
    images_per_class: int,
    *,
    batch_size: int = 50,
    report: ProgressCallback = no_progress,
) -> dict[str, float]:
    """Generate images of every class with seeds 0, 1, 2, ... and classify them.

    Also gives the mean ``entropy_bits`` and ``entropy_ratio`` per position.
    """
    num_images = images_per_class * len(bundle.manifest.class_names)
    count, agreed, bits = 0, 0, 0.0
    for batch in sample(bundle, default_params(bundle), images_per_class, batch_size=batch_size):
        count += len(batch.labels)
        agreed += int((predict(classifier, batch.pixels) == batch.labels).sum())
        bits += float(batch.entropies.sum())
        report(count, num_images, f"{agreed / count:.1%} agree")
    mean_bits = bits / num_images / bundle.manifest.num_positions
    return {
        "class_agreement": agreed / num_images,
        "class_agreement_images": num_images,
        "entropy_bits": mean_bits,
        "entropy_ratio": mean_bits / float(np.log2(max(2, bundle.manifest.num_clusters))),
    }


def seconds_per_image(bundle: Bundle, repeats: int = 7) -> dict[str, float]:
    """Median seconds of one image at a time with the bundle's defaults, rendering included."""
    params = default_params(bundle)
    make_images(bundle, [params])
    seconds = []
    for seed in range(repeats):
        started = time.perf_counter()
        make_images(bundle, [replace(params, seed=seed)])
        seconds.append(time.perf_counter() - started)
    return {
        "seconds_per_image": statistics.median(seconds),
        "seconds_per_image_threads": torch.get_num_threads(),
    }


def first_images(
    bundle: Bundle,
    columns: int = SAMPLE_COLUMNS,
    scale: int | None = None,
    num_images: int = SHEET_IMAGES,
) -> bytes:
    """PNG sheet, unselected: classes with seed 0, as many as there are or evenly spread.

    ``scale`` enlarges images; by default small ones are enlarged.
    """
    names = bundle.manifest.class_names
    scale = scale or min(3, max(1, 256 // bundle.manifest.image_size))
    count = min(num_images, len(names))
    classes = [int(i) for i in np.linspace(0, len(names) - 1, count).round()]
    params = [replace(default_params(bundle), class_id=i) for i in classes]
    batches = (params[start : start + columns] for start in range(0, count, columns))
    pixels = [make_images(bundle, batch)[0] for batch in batches]
    enlarged = np.concatenate(pixels).repeat(scale, axis=1).repeat(scale, axis=2)
    buffer = io.BytesIO()
    captions = [names[i] for i in classes]
    contact_sheet(list(enlarged), columns, captions=captions).save(buffer, "PNG")
    return buffer.getvalue()
