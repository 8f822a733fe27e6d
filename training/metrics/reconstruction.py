"""Images through a tokenizer and back, and how much of them survives.

Legend: N images, S pixels a side, V codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from masc_core.arrays import IntArray
from masc_core.images import Pixels, contact_sheet
from masc_core.models.vq import VQModel, pixels_to_float, to_uint8
from training.metrics.image_quality import psnr, ssim

BATCH_SIZE = 64


def to_float(pixels: Pixels) -> Tensor:
    """As `pixels_to_float`, of an array."""
    return pixels_to_float(torch.from_numpy(pixels))


@torch.inference_mode()
def reconstruct(
    model: VQModel, pixels: Pixels, batch_size: int = BATCH_SIZE
) -> tuple[Pixels, NDArray[np.int64]]:
    """Reconstructions uint8 (N, S, S, 3) and codes int64 (N, h*w) of images uint8 (N, S, S, 3)."""
    images, codes = zip(*(pair for _, *pair in _batches(model, pixels, batch_size)), strict=True)
    return np.concatenate(images), np.concatenate(codes)


@torch.inference_mode()
def reconstruction_metrics(
    model: VQModel,
    pixels: Pixels,
    distances: Mapping[str, nn.Module] | None = None,
    mean: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> dict[str, float]:
    """How well a tokenizer reconstructs images, after rounding to 8 bits.

    Parameters
    ----------
    model : in evaluation mode
    pixels : uint8 (N, S, S, 3), S >= 11
    distances : by name, each of images (N, 3, S, S) in [-1, 1] from others; on the model's device
    mean : mean of a tensor over the processes that each measure a share of the images; shares may
        differ in size

    Returns
    -------
    ``psnr`` in dB, ``ssim`` and the distances, means over the images; ``codebook_usage``, the share
    of the V codes that occur, and ``codebook_perplexity``, two to the entropy of their frequencies
    """
    device = next(model.parameters()).device
    sums = ReconstructionSums(model.config.num_codes, distances)
    for originals, images, codes in _batches(model, pixels, BATCH_SIZE):
        sums.add(originals, images, codes, device)
    return sums.metrics(lambda values: mean(values.to(device)).cpu())


class ReconstructionSums:
    """What `reconstruction_metrics` is made of, batch by batch."""

    def __init__(self, num_codes: int, distances: Mapping[str, nn.Module] | None = None) -> None:
        self._distances = dict(distances or {})
        self._names = ("psnr", "ssim", *self._distances)
        self._qualities = torch.zeros(1 + len(self._names), dtype=torch.float64)  # of N, then names
        self._counts = torch.zeros(num_codes, dtype=torch.float64)

    def add(
        self, originals: Pixels, images: Pixels, codes: IntArray, device: torch.device | None = None
    ) -> None:
        """Take in images uint8 (N, S, S, 3), what became of them, and their codes (N, h*w).

        ``device`` : of the distances
        """
        floats = [to_float(side).to(device) for side in (images, originals)]
        measured = [psnr(images, originals).sum(), ssim(images, originals).sum()]
        measured += [float(distance(*floats).sum()) for distance in self._distances.values()]
        self._qualities += torch.tensor([len(images), *measured], dtype=torch.float64)
        self._counts += torch.from_numpy(np.bincount(codes.ravel(), minlength=len(self._counts)))

    def metrics(self, mean: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, float]:
        """Means over the images, and how the codes are used."""
        sums = mean(torch.cat([self._qualities, self._counts]))
        count, *totals = sums[: len(self._qualities)].tolist()
        metrics = {name: total / count for name, total in zip(self._names, totals, strict=True)}
        return metrics | _codebook_metrics(sums[len(self._qualities) :])


def reconstruction_sheet(model: VQModel, pixels: Pixels, pairs: int = 32) -> Image.Image:
    """Rows of originals, each above its reconstruction."""
    chosen = pixels[np.linspace(0, len(pixels) - 1, min(pairs, len(pixels))).astype(int)]
    images, _ = reconstruct(model, chosen)
    columns = min(8, len(chosen))
    rows: list[Pixels] = []
    for start in range(0, len(chosen), columns):
        for half in (chosen, images):
            row = half[start : start + columns]
            rows += [*row, *(np.zeros_like(row[0]) for _ in range(columns - len(row)))]
    return contact_sheet(rows, columns=columns)


def _batches(
    model: VQModel, pixels: Pixels, batch_size: int
) -> Iterator[tuple[Pixels, Pixels, NDArray[np.int64]]]:
    """Originals, reconstructions and codes."""
    device = next(model.parameters()).device
    for start in range(0, len(pixels), batch_size):
        originals = pixels[start : start + batch_size]
        decoded, quantized = model(to_float(originals).to(device))
        yield originals, to_uint8(decoded).cpu().numpy(), quantized.codes.cpu().numpy()


def _codebook_metrics(counts: Tensor) -> dict[str, float]:
    frequencies = counts[counts > 0] / counts.sum()
    entropy = -(frequencies * frequencies.log2()).sum()
    return {
        "codebook_usage": len(frequencies) / len(counts),
        "codebook_perplexity": float(2**entropy),
    }
