from __future__ import annotations

import numpy as np
import pytest
import torch

from masc_core.images import Pixels
from masc_core.models.vq import VQConfig, VQModel, to_uint8
from training.losses.lpips import Lpips
from training.metrics.image_quality import psnr, ssim
from training.metrics.reconstruction import (
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


def small_model() -> VQModel:
    torch.manual_seed(0)
    return VQModel(VQConfig(num_codes=8, ch=32, ch_mult=(1, 1), z_channels=32)).eval()


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    return Lpips()


def drawn_pixels(count: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def test_metrics_agree_with_the_plain_formulas(lpips: Lpips) -> None:
    model, pixels = small_model(), drawn_pixels(5)
    images, codes = reconstruct(model, pixels, batch_size=2)
    counts = np.array([np.count_nonzero(codes == code) for code in range(8)])
    used = counts[counts > 0]
    metrics = reconstruction_metrics(model, pixels, {"lpips": lpips})
    assert metrics == pytest.approx(
        {
            "psnr": psnr(images, pixels).mean(),
            "ssim": ssim(images, pixels).mean(),
            "lpips": lpips(to_float(images), to_float(pixels)).mean().item(),
            "codebook_usage": len(used) / 8,
            "codebook_perplexity": np.prod((codes.size / used) ** (used / codes.size)),
        }
    )
    assert "lpips" not in reconstruction_metrics(model, pixels)


def test_shares_of_the_images_are_put_together(lpips: Lpips) -> None:
    model, pixels = small_model(), drawn_pixels(5)
    whole = reconstruction_metrics(model, pixels, {"lpips": lpips})
    shares: list[torch.Tensor] = []

    def note(sums: torch.Tensor) -> torch.Tensor:
        shares.append(sums)
        return torch.stack(shares).mean(0)

    for share in (pixels[:1], pixels[1:], pixels[:0]):
        metrics = reconstruction_metrics(model, share, {"lpips": lpips}, mean=note)
    assert metrics == pytest.approx(whole, rel=1e-5)


def test_the_sheet_pairs_originals_with_reconstructions() -> None:
    model, pixels = small_model(), drawn_pixels(11)
    images, _ = reconstruct(model, pixels)
    sheet = np.asarray(reconstruction_sheet(model, pixels, pairs=11))
    assert sheet.shape == (4 * 18 - 2, 8 * 18 - 2, 3)
    assert np.array_equal(sheet[:16, 18:34], pixels[1])
    assert np.array_equal(sheet[18:34, 18:34], images[1])
    assert np.array_equal(sheet[36:52, 36:52], pixels[10])
    assert np.array_equal(sheet[54:70, 36:52], images[10])
