"""How close an image is to another: PSNR of its pixels, SSIM of its luma.

``PSNR = 10 log10(255^2 / MSE)``. SSIM is the mean over all windows that lie inside the image of

    (2 m_x m_y + C1) (2 s_xy + C2) / ((m_x^2 + m_y^2 + C1) (s_x^2 + s_y^2 + C2))

with means m, variances s^2 and covariance s_xy under a Gaussian window of 11x11 pixels and sigma
1.5, C1 = (0.01 * 255)^2 and C2 = (0.03 * 255)^2. Images that are equal have the PSNR `EXACT_PSNR`.

Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment: From Error Visibility to Structural
Similarity. IEEE Transactions on Image Processing 13(4), 2004.

Legend: N images, H and W pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from masc_core.arrays import FloatArray
from masc_core.images import Pixels

LEVELS = 255.0
LEAST_ERROR = 1e-10
EXACT_PSNR = float(10 * np.log10(LEVELS**2 / LEAST_ERROR))

WINDOW = 11
SIGMA = 1.5
C1, C2 = (0.01 * LEVELS) ** 2, (0.03 * LEVELS) ** 2

# ITU-R BT.601. SSIM was defined on luminance alone, and one plane costs a third of three.
LUMA = (0.299, 0.587, 0.114)


def psnr(images: Pixels, references: Pixels) -> FloatArray:
    """Peak signal-to-noise ratio of each image in dB, float64 (N,), of uint8 (N, H, W, 3)."""
    error = (images.astype(np.float64) - references.astype(np.float64)) ** 2
    mean: FloatArray = error.mean(axis=(1, 2, 3))
    return 10 * np.log10(LEVELS**2 / np.maximum(mean, LEAST_ERROR))


def ssim(images: Pixels, references: Pixels) -> FloatArray:
    """Structural similarity of each image, float64 (N,) in [-1, 1], of uint8 (N, H, W, 3).

    Raises
    ------
    ValueError : images with a side below 11 pixels, in which no window fits
    """
    if min(images.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM needs {WINDOW} pixels a side, got {images.shape[1:3]}")
    x, y = _luma(images), _luma(references)
    down, across = _window_means(x.shape[1]), _window_means(x.shape[2])

    def mean(planes: Tensor) -> Tensor:
        return down @ planes @ across.T

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (var_x + var_y + C2)
    return (luminance * structure).mean(dim=(1, 2)).numpy()


def _luma(images: Pixels) -> Tensor:
    return torch.from_numpy(images).double() @ torch.tensor(LUMA, dtype=torch.float64)


def _window_means(length: int) -> Tensor:
    """Matrix (length - 10, length) that takes the mean under the window wherever it fits.

    The two-dimensional window is the product of two of these, which costs two matrix products.
    """
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    num_windows = length - WINDOW + 1
    means = torch.zeros(num_windows, length, dtype=torch.float64)
    rows = torch.arange(num_windows)[:, None]
    means[rows, rows + torch.arange(WINDOW)] = weights / weights.sum()
    return means
