"""Figures of a bundle: class agreement, entropy, speed, and a sheet of what it makes.

Class agreement is the share of generated images that a classifier of real images assigns to the
class that was asked for; chance is one over the number of classes.
This module does not know how a bundle was made or is served.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from masc_core.bundle import Bundle
from masc_core.generate import generate
from masc_core.image_spec import ImageSpec
from masc_core.images import contact_sheet
from training.classifier import predict
from training.loop import Report, no_report


def default_spec(bundle: Bundle) -> ImageSpec:
    """What a request for class 0 and seed 0 gets that says nothing else."""
    defaults = bundle.manifest.defaults
    return ImageSpec(class_id=0, seed=0, **dict(defaults))


def class_agreement(
    bundle: Bundle,
    classifier: nn.Module,
    images_per_class: int,
    *,
    batch_size: int = 50,
    report: Report = no_report,
) -> dict[str, float]:
    """Generate images of every class with seeds 0, 1, 2, ... and let the classifier judge them.

    Returns
    -------
    ``class_agreement``, and mean ``entropy_bits`` and ``entropy_ratio`` a position
    """
    num_classes = len(bundle.manifest.class_names)
    spec = default_spec(bundle)
    specs = [
        replace(spec, class_id=label, seed=seed)
        for label in range(num_classes)
        for seed in range(images_per_class)
    ]
    agreed, bits = 0, 0.0
    for start in range(0, len(specs), batch_size):
        batch = specs[start : start + batch_size]
        pixels, entropies = make_images(bundle, batch)
        agreed += int((predict(classifier, pixels) == [s.class_id for s in batch]).sum())
        bits += float(entropies.sum())
        report(start + len(batch), len(specs), f"{agreed / (start + len(batch)):.1%} agree")
    mean_bits = bits / len(specs) / bundle.manifest.num_positions
    return {
        "class_agreement": agreed / len(specs),
        "class_agreement_images": len(specs),
        "entropy_bits": mean_bits,
        "entropy_ratio": mean_bits / float(np.log2(max(2, bundle.manifest.num_clusters))),
    }


def make_images(
    bundle: Bundle, specs: Sequence[ImageSpec]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Pixels uint8 (B, H, W, 3) and entropies float32 (B, L), bits, of the images."""
    generated = generate(bundle.model, bundle.decoder, specs)
    return bundle.render(generated.codes), generated.entropies.cpu().numpy()


def seconds_per_image(bundle: Bundle, repeats: int = 7) -> dict[str, float]:
    """Median seconds of one image at a time with the bundle's defaults, rendering included."""
    spec = default_spec(bundle)
    make_images(bundle, [spec])
    seconds = []
    for seed in range(repeats):
        started = time.perf_counter()
        make_images(bundle, [replace(spec, seed=seed)])
        seconds.append(time.perf_counter() - started)
    return {
        "seconds_per_image": statistics.median(seconds),
        "seconds_per_image_threads": torch.get_num_threads(),
    }


def first_images(bundle: Bundle, columns: int = 10, scale: int = 3) -> bytes:
    """PNG sheet, unselected: every class with seed 0, enlarged ``scale`` times."""
    names = bundle.manifest.class_names
    spec = default_spec(bundle)
    pixels, _ = make_images(bundle, [replace(spec, class_id=i) for i in range(len(names))])
    enlarged = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    buffer = io.BytesIO()
    contact_sheet(list(enlarged), columns, captions=names).save(buffer, "PNG")
    return buffer.getvalue()
