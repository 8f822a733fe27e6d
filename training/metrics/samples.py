"""A class-balanced set of generated images, batch by batch.

Classes are interleaved, every one with seed ``s`` before any with seed ``s + 1``: scores that are
means over parts of the set, such as the Inception score, are too low when parts lack classes.
Batches are full but for the last one, and all their images end at the same position, so that no row
of a batch is ever idle; no more than a batch is held. Several processes share each batch.

Legend: B images, L positions, S pixels a side; E is 2 where the model has a partition, else 1.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from masc_core.bundle.read import Bundle
from masc_core.generation.generate import generate
from masc_core.io.files import atomic_path
from masc_core.sampling.params import SamplingParams, image_seed
from training.loop.distributed import Ranks


@dataclass(frozen=True, slots=True)
class Samples:
    """A batch.

    Attributes
    ----------
    pixels : uint8 (B, S, S, 3)
    labels : int64 (B,), the classes asked for
    entropies : float32 (B, E, L), bits; of tokens, and of the clusters of the partition
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
    first: int = 0,
) -> Iterator[Samples]:
    """Generate images of every class.

    Parameters
    ----------
    bundle : the model
    params : of every image but for class and seed; the first seed is its own
    images_per_class : each with a seed of its own, the same for all classes
    batch_size : images at a time, on each rank
    image_size : S; models of 384 pixels are evaluated at 256
    ranks : processes that share the work; collective: all iterate, the main one gets batches
    first : images that are there already, and are left out
    """
    ranks = ranks or Ranks(bundle.device)
    num_classes = len(bundle.manifest.class_names)
    total = num_classes * images_per_class
    size = image_size or bundle.manifest.image_size
    images = [
        replace(params, class_id=i % num_classes, seed=image_seed(params.seed, i // num_classes))
        for i in range(total)
    ]
    at_once = batch_size * ranks.world_size
    for start in range(first, total, at_once):
        batch = images[start : start + at_once]
        share = -(-len(batch) // ranks.world_size)
        own = batch[share * ranks.rank : share * (ranks.rank + 1)]
        pixels = np.zeros((share, size, size, 3), np.uint8)
        entropies = np.zeros((share, *entropies_shape(bundle)), np.float32)
        if own:  # the last ranks may be left without
            pixels[: len(own)], entropies[: len(own)] = make_images(bundle, own, size)
        all_pixels = ranks.gather(torch.from_numpy(pixels))
        all_entropies = ranks.gather(torch.from_numpy(entropies))
        if all_pixels is not None and all_entropies is not None:
            labels = np.array([image.class_id for image in batch], np.int64)
            count = len(batch)
            yield Samples(all_pixels.numpy()[:count], labels, all_entropies.numpy()[:count])


def make_images(
    bundle: Bundle, params: Sequence[SamplingParams], image_size: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Pixels uint8 (B, H, W, 3), resized if asked, and entropies float32 (B, E, L), bits."""
    generated = generate(bundle.transformer, bundle.code_sampler, params)
    entropies = torch.cat([generated.entropies, generated.cluster_entropies], dim=1)
    stacked = entropies.view(len(params), *entropies_shape(bundle))
    return bundle.render(generated.codes, image_size), stacked.cpu().numpy()


def entropies_shape(bundle: Bundle) -> tuple[int, int]:
    """(E, L)."""
    return 1 if bundle.code_sampler.coarse_partition is None else 2, bundle.manifest.num_positions


@contextmanager
def image_archive(
    path: Path, num_images: int, image_size: int
) -> Iterator[Callable[[NDArray[np.uint8]], object]]:
    """Write images as one ``.npz`` for the ADM evaluator: ``arr_0``, uint8 (N, S, S, 3).

    What it gives appends a batch (B, S, S, 3), so that 50,000 images need no more memory than a
    batch. ``path`` appears when all ``num_images`` are there.
    """
    shape = (num_images, image_size, image_size, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        npy.write_array_header_1_0(member, header)
        yield lambda pixels: member.write(np.ascontiguousarray(pixels).tobytes())
