from __future__ import annotations

import numpy as np
import pytest
import torch

from masc_core.models.vq import VQConfig, VQModel, to_uint8
from training.reconstruction import (
    reconstruct,
    reconstruction_metrics,
    reconstruction_sheet,
    to_float,
)


def test_pixels_survive_the_way_to_floats_and_back() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    images = to_float(pixels)
    assert images.shape == (1, 3, 16, 16)
    assert images.min() == -1
    assert images.max() == 1
    error = to_uint8(images).int() - torch.from_numpy(pixels).int()
    assert error.abs().max() <= 1


def test_metrics_agree_with_the_plain_formula() -> None:
    torch.manual_seed(0)
    model = VQModel(VQConfig(num_codes=8, ch=32, ch_mult=(1, 1), z_channels=32)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    images, codes = reconstruct(model, pixels, batch_size=2)
    psnr = []
    for image, original in zip(images, pixels, strict=True):
        mse = np.mean((image.astype(float) - original.astype(float)) ** 2)
        psnr.append(20 * np.log10(255) - 10 * np.log10(mse))
    metrics = reconstruction_metrics(model, pixels)
    assert metrics["psnr"] == pytest.approx(np.mean(psnr))
    assert metrics["codebook_usage"] == len(set(codes.ravel().tolist())) / 8


def test_the_sheet_pairs_originals_with_reconstructions() -> None:
    torch.manual_seed(0)
    model = VQModel(VQConfig(num_codes=8, ch=32, ch_mult=(1, 1), z_channels=32)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)
    images, _ = reconstruct(model, pixels)
    sheet = np.asarray(reconstruction_sheet(model, pixels, pairs=11))
    assert sheet.shape == (4 * 18 - 2, 8 * 18 - 2, 3)
    assert np.array_equal(sheet[:16, 18:34], pixels[1])
    assert np.array_equal(sheet[18:34, 18:34], images[1])
    assert np.array_equal(sheet[36:52, 36:52], pixels[10])
    assert np.array_equal(sheet[54:70, 36:52], images[10])
