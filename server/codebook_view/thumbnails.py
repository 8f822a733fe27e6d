"""One small image of each class, cut from the sheet of samples that a bundle brings.

The sheet is a `masc_core.images.contact_sheet` of square images with captions, one of each class,
ten per row, as `masc models publish` draws it. Any other layout is refused: a sheet of some of the
classes would give a class the image of another.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from masc_core.images import CAPTION_HEIGHT, SAMPLE_COLUMNS, SHEET_GAP

SIDE = 64  # pixels at most
WHITE = ((255, 255),) * 3  # lowest and highest value of each channel where a sheet is empty
MAX_PIXELS = 32_000_000  # 128 MB while they are decoded; a hundred images of 512 pixels a side

_UNREADABLE = (UnidentifiedImageError, OSError, Image.DecompressionBombError)


def cut_thumbnails(sheet: bytes, num_classes: int) -> tuple[bytes, ...]:
    """WebP files, one a class; `ValueError` if it is not a sheet of so many classes."""
    try:
        with Image.open(io.BytesIO(sheet)) as opened:
            side = side_of_tiles(opened.size, num_classes)
            image = opened if opened.mode == "RGB" else opened.convert("RGB")
            tiles = [image.crop(_box(index, side, CAPTION_HEIGHT)) for index in range(num_classes)]
    except _UNREADABLE as error:
        raise ValueError("is not an image that can be read") from error
    if tiles[-1].getextrema() == WHITE:
        raise ValueError(f"has fewer than {num_classes} images")
    return tuple(_encode(tile.crop((0, 0, side, side))) for tile in tiles)


def is_sheet(path: Path, num_classes: int) -> bool:
    """Whether a file has the size of a sheet of so many classes; none of its pixels are read."""
    try:
        with Image.open(path) as opened:
            side_of_tiles(opened.size, num_classes)
    except (ValueError, *_UNREADABLE):
        return False
    return True


def side_of_tiles(size: tuple[int, int], num_classes: int) -> int:
    """Pixels a side of the images on a sheet (width, height) of so many classes.

    Raises
    ------
    ValueError : there is no such sheet, or it is too large to be cut
    """
    width, height = size
    columns = min(SAMPLE_COLUMNS, num_classes)
    rows = -(-num_classes // columns)
    side = (width + SHEET_GAP) // columns - SHEET_GAP
    across, down = _steps(side)
    if side < 1 or size != (columns * across - SHEET_GAP, rows * down - SHEET_GAP):
        raise ValueError(f"has {width}x{height} pixels, which {num_classes} images do not fill")
    if width * height > MAX_PIXELS:
        raise ValueError(f"has {width}x{height} pixels, more than {MAX_PIXELS:,}")
    return side


def _box(index: int, side: int, below: int) -> tuple[int, int, int, int]:
    """Box of an image, with so many rows below it."""
    across, down = _steps(side)
    left, top = index % SAMPLE_COLUMNS * across, index // SAMPLE_COLUMNS * down
    return left, top, left + side, top + side + below


def _steps(side: int) -> tuple[int, int]:
    """Pixels from one image to the next, across and down."""
    return side + SHEET_GAP, side + CAPTION_HEIGHT + SHEET_GAP


def _encode(tile: Image.Image) -> bytes:
    file = io.BytesIO()
    if tile.width > SIDE:
        tile = tile.resize((SIDE, SIDE), Image.Resampling.BOX)
    tile.save(file, "WEBP", quality=85)
    return file.getvalue()
