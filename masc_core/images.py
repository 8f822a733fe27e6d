"""Images before a tokenizer sees them and after one has made them: crop, encode, contact sheet.

Pillow and NumPy only. An image is a uint8 array (H, W, 3), RGB. Encoding is a pure function of the
pixels, the description and the library's version: no time stamp.

PNG uses level 1, WebP is lossless at its lowest effort (exact pixels for less than a PNG costs),
and JPEG, quality 95 with full chroma, is the small one (docs/results/README.md).
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

ImageFormat = Literal["png", "jpeg", "webp"]
Pixels = npt.NDArray[np.uint8]

# What Pillow raises for files that are not whole images of a format that it knows.
UNREADABLE = (
    *(OSError, EOFError, ValueError, SyntaxError, OverflowError, MemoryError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)

ENCODERS: Mapping[ImageFormat, Mapping[str, Any]] = {
    "png": {"format": "PNG", "compress_level": 1},
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    "webp": {"format": "WEBP", "lossless": True, "method": 0, "quality": 0},
}

# What makes an image upright, by its EXIF orientation; 1 is upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_ASPECT = 64
MAX_EXIF = 60_000  # bytes; a segment of a JPEG ends at 65,535
CAPTION_HEIGHT = 14
SHEET_GAP = 2  # pixels between the images of a contact sheet
SAMPLE_COLUMNS = 10  # images a row of the sheet that a bundle brings


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the short side to ``size`` and cut the middle square, as ADM and LlamaGen do.

    The result is RGB; the crop's offset is rounded down.
    """
    image = scale_short_side(image, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def upright(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF orientation says; unreadable EXIF leaves it as it is."""
    image.load()  # a PNG may have its EXIF behind the pixels; Pillow turns a TIFF by itself
    try:
        held = image.getexif().get(ExifTags.Base.Orientation)
    except (OSError, ValueError, SyntaxError, LookupError, TypeError, struct.error):
        return image
    turn = TURNS.get(held) if isinstance(held, int) else None
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image, background: tuple[int, ...] | None = None) -> Image.Image:
    """An image in RGB; 16-bit grey by its upper bytes, as Pillow reads 16-bit colours.

    What is transparent gets the background (red, green, blue); without one it shows the colours
    that are hidden there. 32-bit numbers, of which nothing says which is white, are a `ValueError`.
    """
    if image.mode in {"I", "F"}:
        raise ValueError("it holds 32-bit numbers, no colours")
    if image.mode.startswith("I;16"):  # Pillow would take all from 255 on for white
        deep, hidden = np.asarray(image), image.info.get("transparency")
        image = Image.fromarray((deep >> 8).astype(np.uint8))
        if hidden is not None:
            image.putalpha(Image.fromarray(deep != hidden).convert("L"))
    if background is not None and image.has_transparency_data:
        image = image.convert("RGBA")
        below = Image.new("RGB", image.size, background)
        below.paste(image, mask=image)
        return below
    return image.convert("RGB")


def scale_short_side(image: Image.Image, length: int) -> Image.Image:
    """Scale an image so that its short side has ``length`` pixels, as ADM does; to RGB.

    Halve with a box filter while the short side is at least twice too long, then one bicubic
    resize. Of a strip, more than `MAX_ASPECT` times as long as wide, only the middle of that
    aspect is scaled: a few bytes can be a strip that would fill the memory. A length below 1 is a
    `ValueError`.
    """
    if length < 1:
        raise ValueError(f"the size must be at least 1, got {length}")
    image = to_rgb(_middle(image))
    while min(image.size) >= 2 * length:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = length / min(image.size)
    rounded = (round(image.width * scale), round(image.height * scale))
    return image.resize(rounded, Image.Resampling.BICUBIC)


def _middle(image: Image.Image) -> Image.Image:
    longest = MAX_ASPECT * min(image.size)
    if max(image.size) <= longest:
        return image
    left, top = (max(0, side - longest) // 2 for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


def encode_image(
    pixels: Pixels,
    format: ImageFormat,  # noqa: A002 - the request's field
    description: str = "",
) -> bytes:
    """Encode an image (H, W, 3) as a file of the format; equal arguments give equal bytes.

    A description, in ASCII, becomes the text ``Description`` of a PNG, and the EXIF tag
    ``ImageDescription`` of the others, in which there is no room for more than `MAX_EXIF`.
    """
    buffer, options = io.BytesIO(), dict(ENCODERS[format])
    if description and format == "png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text("Description", description)
    elif 0 < len(description) <= MAX_EXIF:
        options["exif"] = Image.Exif()
        options["exif"][ExifTags.Base.ImageDescription] = description
    Image.fromarray(pixels).save(buffer, **options)
    return buffer.getvalue()


def contact_sheet(
    images: Sequence[Pixels], columns: int, *, captions: Sequence[str] | None = None
) -> Image.Image:
    """Lay images (H, W, 3) of one size out in rows, two pixels apart, on white.

    Captions are written below the images and cut off at their width. No images, images of different
    sizes, or another number of captions are a `ValueError`.
    """
    if not images or columns < 1:
        raise ValueError("a contact sheet needs at least one image and one column")
    if len({image.shape for image in images}) > 1:
        raise ValueError("the images of a contact sheet must be of one size")
    tiles = [Image.fromarray(image) for image in images]
    if captions is not None:
        tiles = [_captioned(*pair) for pair in zip(tiles, captions, strict=True)]
    width, height = tiles[0].width + SHEET_GAP, tiles[0].height + SHEET_GAP
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    size = (columns * width - SHEET_GAP, rows * height - SHEET_GAP)
    sheet = Image.new("RGB", size, "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * width, i // columns * height))
    return sheet


def _captioned(image: Image.Image, caption: str) -> Image.Image:
    tile = Image.new("RGB", (image.width, image.height + CAPTION_HEIGHT), "white")
    tile.paste(image, (0, 0))
    ImageDraw.Draw(tile).text((1, image.height), caption, "black", ImageFont.load_default(10))
    return tile
