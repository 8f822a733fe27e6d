"""One small image of each class, cut from the sheet of samples that a bundle brings.

The sheet is a `masc_core.images.contact_sheet` of square images, one a class, in as many columns as
make its tiles square.
This module does not know where sheets come from.

Legend: n classes.
"""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from masc_core.images import CAPTION_HEIGHT

SIDE = 64  # pixels at most
GAP = 2  # between the images of a sheet


def cut_thumbnails(sheet: bytes, num_classes: int) -> tuple[bytes, ...]:
    """WebP files, one a class.

    Raises
    ------
    ValueError : not a sheet of so many classes
    """
    try:
        with Image.open(io.BytesIO(sheet)) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ValueError("is not an image that can be read") from error
    columns, side = _layout(image.width, image.height, num_classes)
    thumbnails = []
    for index in range(num_classes):
        left = index % columns * (side + GAP)
        top = index // columns * (side + CAPTION_HEIGHT + GAP)
        tile = image.crop((left, top, left + side, top + side))
        thumbnails.append(_encode(tile))
    return tuple(thumbnails)


def _layout(width: int, height: int, num_classes: int) -> tuple[int, int]:
    """Columns of a sheet, and pixels a side of its images."""
    for columns in range(1, num_classes + 1):
        side, rest = divmod(width + GAP, columns)
        rows = -(-num_classes // columns)
        if not rest and side > GAP and rows * (side + CAPTION_HEIGHT) - GAP == height:
            return columns, side - GAP
    raise ValueError(f"has {width}x{height} pixels, which {num_classes} images do not fill")


def _encode(tile: Image.Image) -> bytes:
    file = io.BytesIO()
    if tile.width > SIDE:
        tile = tile.resize((SIDE, SIDE), Image.Resampling.BOX)
    tile.save(file, "WEBP", quality=85)
    return file.getvalue()
