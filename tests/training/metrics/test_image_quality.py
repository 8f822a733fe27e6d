from __future__ import annotations

import numpy as np
import pytest

from masc_core.images import Pixels
from training.metrics.image_quality import EXACT_PSNR, psnr, ssim


def drawn_pairs() -> tuple[Pixels, Pixels]:
    """Three pairs: textures that share little, smooth ones that share much, plain colours."""
    y, x = np.mgrid[0:32, 0:24]
    plain = np.ones_like(x)
    images = [
        [7 * x + 3 * y, x * x + y, 5 * y],
        [5 * x, 4 * y, x + y],
        [128 * plain, 64 * plain, 32 * plain],
    ]
    others = [
        [7 * x + 3 * y, x * x + 2 * y, 7 * y],
        [5 * x + 9 * (y % 2), 4 * y, x + y + 6],
        [120 * plain, 64 * plain, 34 * plain],
    ]
    return tuple((np.moveaxis(np.array(p), 1, -1) % 256).astype(np.uint8) for p in (images, others))  # type: ignore[return-value]


def test_ssim_agrees_with_scikit_image() -> None:
    # structural_similarity(a @ LUMA, b @ LUMA, data_range=255, gaussian_weights=True, sigma=1.5,
    #                       use_sample_covariance=False) of scikit-image 0.26.0
    expected = [0.8038690538512003, 0.980907038570278, 0.9996193957446768]
    assert ssim(*drawn_pairs()) == pytest.approx(expected, abs=1e-11)


def test_psnr_agrees_with_scikit_image() -> None:
    # peak_signal_noise_ratio(a, b, data_range=255) of scikit-image 0.26.0
    expected = [17.091816602545155, 34.06540180433955, 34.576927028813365]
    assert psnr(*drawn_pairs()) == pytest.approx(expected)


def test_equal_images() -> None:
    images, _ = drawn_pairs()
    assert psnr(images, images).tolist() == [EXACT_PSNR] * 3
    assert ssim(images, images) == pytest.approx([1, 1, 1])


def test_images_smaller_than_the_window() -> None:
    images = np.zeros((1, 11, 11, 3), np.uint8)
    assert ssim(images, images) == pytest.approx([1])
    with pytest.raises(ValueError, match="11 pixels a side, got \\(11, 10\\)"):
        ssim(images[:, :, 1:], images[:, :, 1:])
