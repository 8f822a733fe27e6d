"""A class-balanced set of generated images, batch by batch.

Classes are interleaved, every one with seed ``s`` before any with seed ``s + 1``: scores that are
means over parts of the set, such as the Inception score, are too low when parts lack classes.
Batches are full but for the last one, and all their images end at the same position, so that no row
of a batch is ever idle; no more than a batch is held. Several processes share each batch.

Legend: B images, L positions, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from masc_core.bundle.read import Bundle
from masc_core.generation.generate import generate
from masc_core.sampling.params import SamplingParams
from training.loop.distributed import Ranks


@dataclass(frozen=True, slots=True)
class Samples:
    """A batch.

    Attributes
    ----------
    pixels : uint8 (B, S, S, 3)
    labels : int64 (B,), the classes asked for
    entropies : float32 (B, L), bits
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    entropies: NDArray[np.float32]


def sample(
    bundle: Bundle,
    params: SamplingParams,
    images_per_class: int,
    *,
    batch_size: int = 50,
    image_size: int | None = None,
    ranks: Ranks | None = None,
) -> Iterator[Samples]:
    """Generate images of every class.

    Parameters
    ----------
    bundle : the model
    params : of every image but for class and seed; the first seed is its own
    images_per_class : each with a seed of its own, the same for all classes
    batch_size : images at a time, on each rank
    image_size : S; models of 384 pixels are judged at 256
    ranks : processes that share the work; the main one alone gets batches, and all have to iterate
    """
    ranks = ranks or Ranks(bundle.device)
    num_classes = len(bundle.manifest.class_names)
    total = num_classes * images_per_class
    size = image_size or bundle.manifest.image_size
    params_list = [
        replace(params, class_id=i % num_classes, seed=(params.seed + i // num_classes) % 2**63)
        for i in range(total)
    ]
    at_once = batch_size * ranks.count
    for start in range(0, total, at_once):
        whole = params_list[start : start + at_once]
        share = -(-len(whole) // ranks.count)
        own = whole[share * ranks.rank : share * (ranks.rank + 1)]
        pixels = np.zeros((share, size, size, 3), np.uint8)
        entropies = np.zeros((share, bundle.manifest.num_positions), np.float32)
        if own:  # the last ranks may be left without
            pixels[: len(own)], entropies[: len(own)] = make_images(bundle, own, size)
        all_pixels = ranks.gather(torch.from_numpy(pixels))
        all_entropies = ranks.gather(torch.from_numpy(entropies))
        if all_pixels is not None and all_entropies is not None:
            labels = np.array([s.class_id for s in whole], np.int64)
            count = len(whole)
            yield Samples(all_pixels.numpy()[:count], labels, all_entropies.numpy()[:count])


def make_images(
    bundle: Bundle, params_list: Sequence[SamplingParams], image_size: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Pixels uint8 (B, H, W, 3), resized if asked, and entropies float32 (B, L), bits."""
    generated = generate(bundle.model, bundle.decoder, params_list)
    return bundle.render(generated.codes, image_size), generated.entropies.cpu().numpy()
