"""Metrics of a bundle: class agreement, entropy, speed; and its pictures.

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
from PIL import Image
from torch import nn

from masc_core.bundle.codebook_view import CodebookFiles
from masc_core.bundle.read import Bundle
from masc_core.images import SAMPLE_COLUMNS, Pixels, contact_sheet
from masc_core.models.gigatok import GigaTok
from masc_core.models.vq import VQModel
from masc_core.progress import ProgressCallback, no_progress
from masc_core.sampling.params import SamplingParams
from masc_core.tree import build_tree
from training.data.patches import code_patches
from training.metrics.classifier import predict
from training.metrics.samples import make_images, sample

LARGE_SHEET = 100  # images beyond which they are small
SMALL_SIDE = 64  # pixels of these; what the page shows of a class


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
        bits += float(batch.entropies[:, 0].sum())
        report(count, num_images, f"{agreed / count:.1%} agree")
    mean_bits = bits / num_images / bundle.manifest.num_positions
    return {
        "class_agreement": agreed / num_images,
        "class_agreement_images": num_images,
        "entropy_bits": mean_bits,
        "entropy_ratio": mean_bits / float(np.log2(max(2, bundle.manifest.num_clusters))),
    }


def seconds_per_image(
    bundle: Bundle, repeats: int = 7, params: SamplingParams | None = None
) -> dict[str, float]:
    """Median seconds of one image at a time with the bundle's defaults, rendering included.

    ``params`` : to be used instead of them, but for their seed
    """
    params = params or default_params(bundle)
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


def first_images(bundle: Bundle, num_images: int = LARGE_SHEET) -> bytes | None:
    """PNG sheet, unselected: classes with seed 0, as many as there are or evenly spread.

    Small images are enlarged, and those of more than a hundred are at most 64 pixels a side. None
    where no images are asked for.
    """
    names = bundle.manifest.class_names
    count = min(num_images, len(names))
    if not count:
        return None
    scale = min(3, max(1, 256 // bundle.manifest.image_size)) if count <= LARGE_SHEET else 1
    classes = [int(i) for i in np.linspace(0, len(names) - 1, count).round()]
    params = [replace(default_params(bundle), class_id=i) for i in classes]
    batches = (params[start : start + SAMPLE_COLUMNS] for start in range(0, count, SAMPLE_COLUMNS))
    pixels = [_reduced(make_images(bundle, batch)[0], count) for batch in batches]
    enlarged = np.concatenate(pixels).repeat(scale, axis=1).repeat(scale, axis=2)
    buffer = io.BytesIO()
    captions = [names[i] for i in classes]
    contact_sheet(list(enlarged), SAMPLE_COLUMNS, captions=captions).save(buffer, "PNG")
    return buffer.getvalue()


def _reduced(pixels: Pixels, count: int) -> Pixels:
    """Images as they are on a sheet of so many."""
    if count <= LARGE_SHEET or pixels.shape[1] <= SMALL_SIDE:
        return pixels
    size = (SMALL_SIDE, SMALL_SIDE)
    tiles = [Image.fromarray(image).resize(size, Image.Resampling.BOX) for image in pixels]
    return np.stack([np.asarray(tile) for tile in tiles])


def codebook_files(
    tokenizer: VQModel, bundle: Bundle, shuffles: int, report: ProgressCallback = no_progress
) -> CodebookFiles | None:
    """The tree over the codebook, and the patches of its codes.

    None with 0 shuffles, and of a 1-D tokenizer, whose codes have no place and so no pictures.

    The tree is that of average linkage over the rows as the decoder takes them, whatever the prior
    is; where the prior is a cut of it, every cluster is one of its branches. So the rows are those
    of the tokenizer that the prior was made of, and not as a bundle rounds them.
    """
    if not shuffles or isinstance(tokenizer, GigaTok):
        return None
    patches = code_patches(bundle.tokenizer, shuffles=shuffles, report=report)
    rows = tokenizer.quantize.codebook().detach().cpu().double().numpy()
    return CodebookFiles(build_tree(rows, report=report), patches)
