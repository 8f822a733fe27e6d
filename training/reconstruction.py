"""Images through a tokenizer and back, and how much of them survives.

This module does not know how a tokenizer is trained.

Legend: N images, S pixels a side.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from masc_core.images import contact_sheet
from masc_core.models.vq import VQModel, to_uint8


def to_float(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 (B, S, S, 3) to float32 (B, 3, S, S) in [-1, 1], channels last in memory."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1.0


@torch.inference_mode()
def reconstruct(
    model: VQModel, pixels: NDArray[np.uint8], batch_size: int = 64
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Encode and decode images.

    Returns
    -------
    uint8 (N, S, S, 3) reconstructions and int64 (N, h*w) codes
    """
    device = next(model.parameters()).device
    images, codes = [], []
    for start in range(0, len(pixels), batch_size):
        decoded, quantized = model(to_float(pixels[start : start + batch_size]).to(device))
        images.append(to_uint8(decoded).cpu().numpy())
        codes.append(quantized.codes.cpu().numpy())
    return np.concatenate(images), np.concatenate(codes)


def reconstruction_metrics(model: VQModel, pixels: NDArray[np.uint8]) -> dict[str, float]:
    """PSNR in dB (mean over images, of 8-bit pixels) and share of codes in use."""
    images, codes = reconstruct(model, pixels)
    error = (images.astype(np.float64) - pixels.astype(np.float64)) ** 2
    psnr = 10 * np.log10(255.0**2 / np.maximum(error.mean(axis=(1, 2, 3)), 1e-10))
    usage = len(np.unique(codes)) / model.config.num_codes
    return {"psnr": float(psnr.mean()), "codebook_usage": usage}


def reconstruction_sheet(model: VQModel, pixels: NDArray[np.uint8], pairs: int = 32) -> Image.Image:
    """Rows of originals, each above its reconstruction."""
    chosen = pixels[np.linspace(0, len(pixels) - 1, min(pairs, len(pixels))).astype(int)]
    images, _ = reconstruct(model, chosen)
    columns = min(8, len(chosen))
    rows: list[NDArray[np.uint8]] = []
    for start in range(0, len(chosen), columns):
        for half in (chosen, images):
            row = half[start : start + columns]
            rows += [*row, *(np.zeros_like(row[0]) for _ in range(columns - len(row)))]
    return contact_sheet(rows, columns=columns)
