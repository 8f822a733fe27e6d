"""Crops of training images: ADM's random crop, the ten crops that codes are made of.

Legend: N images, R pixels a side before the crop, S after.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from masc_core.images import Pixels, scale_short_side

# ADM: the crop is between these shares of the short side.
MIN_SHARE, MAX_SHARE = 0.8, 1.0


def random_crop(image: Image.Image, size: int, random_bits: tuple[int, int, int]) -> Image.Image:
    """Scale the short side to a random length from ``size`` on, and cut a random square.

    Parameters
    ----------
    image : of any mode; the result is RGB
    size : S
    random_bits : 64-bit random words: of the length, of the top, of the left
    """
    shortest, longest = math.ceil(size / MAX_SHARE), math.ceil(size / MIN_SHARE)
    image = scale_short_side(image, shortest + below(random_bits[0], longest - shortest + 1))
    top = below(random_bits[1], image.height - size + 1)
    left = below(random_bits[2], image.width - size + 1)
    return image.crop((left, top, left + size, top + size))


def ten_crop_source(size: int, crop_range: float) -> int:
    """R of the centre crop that ten crops are cut from."""
    return int(size * crop_range)


def ten_crops(pixels: Pixels, size: int) -> Pixels:
    """Four corners and the centre, then those of the mirror image, as torchvision's ``TenCrop``.

    Parameters
    ----------
    pixels : uint8 (N, R, R, 3), R >= S
    size : S

    Returns
    -------
    uint8 (N, 10, S, S, 3): top left, top right, bottom left, bottom right, centre, twice
    """
    far = pixels.shape[1] - size
    middle = round(far / 2)  # halves to the even number, as there
    corners = ((0, 0), (0, far), (far, 0), (far, far), (middle, middle))
    return np.stack(
        [
            source[:, top : top + size, left : left + size]
            for source in (pixels, pixels[:, :, ::-1])
            for top, left in corners
        ],
        axis=1,
    )


def below(word: int, count: int) -> int:
    """Turn a 64-bit random word into an integer in [0, count)."""
    return (word * count) >> 64
