"""One small image of each class, cut from the sheet of samples that a bundle brings.

The sheet is a `masc_core.images.contact_sheet` of square images with captions, one of each class,
ten per row, as `masc models publish` draws it. Any other layout is refused: a sheet of some of the
classes would give a class the image of another.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

from PIL import Image

from masc_core.images import CAPTION_HEIGHT, SAMPLE_COLUMNS, SHEET_GAP, UNREADABLE
from masc_core.io.bounded import open_file

SIDE = 64  # pixels at most
WHITE = ((255, 255),) * 3  # lowest and highest value of each channel where a sheet is empty
MAX_PIXELS = 32_000_000  # 128 MB while they are decoded; a hundred images of 512 pixels a side
MAX_BYTES = 3 * MAX_PIXELS
PNG_HEAD = struct.Struct(">16sII")  # begins with what follows
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def cut_thumbnails(sheet: bytes, num_classes: int) -> tuple[bytes, ...]:
    """WebP files, one a class; `ValueError` if it is not a sheet of so many classes."""
    try:
        with Image.open(io.BytesIO(sheet), formats=["PNG"]) as opened:
            side = side_of_tiles(opened.size, num_classes)
            image = opened if opened.mode == "RGB" else opened.convert("RGB")
            last = image.crop(_box(num_classes - 1, side, CAPTION_HEIGHT))
    except UNREADABLE as error:
        reason = str(error) if type(error) is ValueError else "is not an image that can be read"
        raise ValueError(reason) from error
    if last.getextrema() == WHITE:
        raise ValueError(f"has fewer than {num_classes} images")
    return tuple(_encode(image.crop(_box(index, side, 0))) for index in range(num_classes))


def is_sheet(path: Path, num_classes: int) -> bool:
    """Whether a PNG has the size of a sheet of so many classes; no more than its head is read."""
    try:
        with open_file(path, MAX_BYTES) as file:
            signature, width, height = PNG_HEAD.unpack(file.read(PNG_HEAD.size))
        side_of_tiles((width, height), num_classes)
    except (OSError, struct.error, ValueError):
        return False
    return bool(signature == PNG_SIGNATURE)


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
