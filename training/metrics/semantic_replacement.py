"""Semantic Replacement Test: replace every code by one of its cluster, decode, compare.

Codes are drawn as the product draws them. The random words of an (image, position, draw) are the
same for every prior, so differences between priors are paired image by image.

Legend: N images, S pixels a side, L positions, D draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from masc_core.arrays import FloatArray
from masc_core.images import Pixels
from masc_core.models.vq import VQModel, to_uint8
from masc_core.sampling.in_cluster import DECODING_IDS, CodeSampler
from masc_core.sampling.rng import code_bits
from training.metrics.image_quality import psnr, ssim
from training.metrics.reconstruction import to_float

BATCH_SIZE = 64  # part of the result's last bits: convolutions choose their algorithm by it


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its standard error."""

    mean: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class Replacement:
    """Quality of every image after each draw, all float64 (D, N).

    Attributes
    ----------
    psnr, ssim : against the original; dB, and a number up to 1
    psnr_to_reconstruction, ssim_to_reconstruction : against what the tokenizer itself makes of the
        image
    kept : share of the positions whose draw is the code that was there
    """

    psnr: FloatArray
    ssim: FloatArray
    psnr_to_reconstruction: FloatArray
    ssim_to_reconstruction: FloatArray
    kept: FloatArray


@torch.inference_mode()
def encode_images(model: VQModel, pixels: Pixels) -> NDArray[np.int64]:
    """Codes int64 (N, L) of images uint8 (N, S, S, 3)."""
    device = next(model.parameters()).device
    codes = []
    for start in range(0, len(pixels), BATCH_SIZE):
        images = to_float(pixels[start : start + BATCH_SIZE]).to(device)
        codes.append(model.encode(images).codes.cpu())
    return torch.cat(codes).numpy()


class ReplacementTest:
    """The test over one tokenizer and one set of images, which are encoded once.

    Parameters
    ----------
    model : in evaluation mode, on the device where images are decoded
    pixels : uint8 (N, S, S, 3), the originals
    draws : D, at least 2
    seed : of the draws, in [0, 2^32)
    positions : whose codes are replaced; the others keep theirs

    Attributes
    ----------
    codes : int64 (N, L)
    reconstructions : uint8 (N, S, S, 3), the images of ``codes``
    """

    def __init__(
        self,
        model: VQModel,
        pixels: Pixels,
        *,
        draws: int,
        seed: int,
        positions: slice = slice(None),
    ) -> None:
        self.model, self.pixels, self.draws, self.seed = model, pixels, draws, seed
        self.positions = positions
        self.device = next(model.parameters()).device
        self.codes = encode_images(model, pixels)
        self.reconstructions = self.decode(self.codes)

    def run(
        self,
        code_sampler: CodeSampler,
        decoding: str,
        after_draw: Callable[[], None] = lambda: None,
    ) -> Replacement:
        """Replace the codes of the positions D times by ``uniform`` or ``frequency`` decoding.

        ``code_sampler`` is that of the prior under test, on the CPU.
        """
        clusters = code_sampler.prior.encode(self.codes)
        draws = []
        for draw in range(self.draws):
            codes = self._replace(code_sampler, decoding, clusters, draw)
            draws.append(self._compare(codes))
            after_draw()
        return Replacement(*(np.stack(values) for values in zip(*draws, strict=True)))

    def nothing_replaced(self) -> Replacement:
        """What a prior would give that replaces every code by itself: the tokenizer's ceiling."""
        values = self._compare(self.codes)
        return Replacement(*(np.stack([value] * self.draws) for value in values))

    @torch.inference_mode()
    def decode(self, codes: NDArray[np.int64]) -> Pixels:
        """Images uint8 (N, S, S, 3) of codes int64 (N, L)."""
        batches = torch.split(torch.from_numpy(codes), BATCH_SIZE)
        images = [to_uint8(self.model.decode_codes(batch.to(self.device))) for batch in batches]
        return torch.cat(images).cpu().numpy()

    def _replace(
        self,
        code_sampler: CodeSampler,
        decoding: str,
        clusters: NDArray[np.int64],
        draw: int,
    ) -> NDArray[np.int64]:
        num_images, positions = clusters.shape
        first = (self.seed << 31) + draw * num_images  # apart for all seeds, draws and images
        seeds = torch.arange(first, first + num_images).repeat_interleave(positions)
        codes = code_sampler.sample_code(
            torch.from_numpy(clusters).flatten(),
            code_bits(seeds, torch.arange(positions).repeat(num_images)),
            torch.full((clusters.size,), DECODING_IDS[decoding]),
        )
        replaced = self.codes.copy()
        replaced[:, self.positions] = codes.view(clusters.shape).numpy()[:, self.positions]
        return replaced

    def _compare(self, codes: NDArray[np.int64]) -> tuple[FloatArray, ...]:
        images = self.decode(codes)
        return (
            psnr(images, self.pixels),
            ssim(images, self.pixels),
            psnr(images, self.reconstructions),
            ssim(images, self.reconstructions),
            (codes == self.codes)[:, self.positions].mean(axis=1),
        )


def over_draws(values: FloatArray) -> Estimate:
    """Mean of (D, N) values, and its standard error for these N images.

    What is random is the draw alone, and draws of different images are independent:
    ``sqrt(sum_i s_i^2 / D) / N`` with s_i^2 the variance of image i over its draws.
    """
    draws, images = values.shape
    variances = values.var(axis=0, ddof=1)
    return Estimate(float(values.mean()), float(np.sqrt(variances.sum() / draws) / images))


def paired_difference(values: FloatArray, others: FloatArray) -> Estimate:
    """Mean of ``values - others``, (D, N) each, and its standard error over images.

    The same images and the same random words went into both, so what an image is like cancels:
    the error is that of the N differences of the images' means, ``s / sqrt(N)``.
    """
    differences = (values - others).mean(axis=0)
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return Estimate(float(differences.mean()), float(error))
