"""Photographs that lie on their side, and images that are transparent, in every kind of set."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from masc_core.errors import ArtifactError, ConfigError
from masc_core.images import upright
from tests.training.data.image_sets import png, write_parquet, write_tar
from training.config import ImageOptions, load_config
from training.data.images import open_images
from training.data.pixels import TrainingPixels
from training.stages.configs import CodesConfig

CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 0, 0]]], np.uint8)
# The corners of an image that is held in each of the ways, as they are stored: EXIF 2.32, 4.6.4.
STORED = {
    1: CORNERS,
    2: CORNERS[:, ::-1],
    3: CORNERS[::-1, ::-1],
    4: CORNERS[::-1],
    5: CORNERS.swapaxes(0, 1),
    6: np.rot90(CORNERS),
    7: CORNERS[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(CORNERS, 3),
}


def as_folder(root: Path, content: bytes, suffix: str) -> Path:
    for name in "ab":
        (root / name).mkdir(parents=True)
        (root / name / f"0{suffix}").write_bytes(content)
    return root


def as_shard(root: Path, content: bytes, suffix: str) -> Path:
    members = [(f"{i}{end}", c) for i in "01" for end, c in ((suffix, content), (".cls", b"0"))]
    return write_tar(root.with_suffix(".tar"), members)


def as_table(root: Path, content: bytes, suffix: str) -> Path:
    del suffix
    return write_parquet(root.with_suffix(".parquet"), [content] * 2, [0, 1])


SETS = [as_folder, as_shard, as_table]


def photograph(held: int, kind: str, size: int = 32) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = held
    stored = STORED[held].repeat(size // 2, 0).repeat(size // 2, 1)
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, kind, exif=exif)
    return buffer.getvalue()


def corners(path: Path, options: ImageOptions) -> np.ndarray:
    pixels = open_images(path, options).read(16).pixels
    assert np.array_equal(pixels[0], pixels[1])
    return np.where(pixels[0, 4::8, 4::8] > 128, 255, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("held", STORED)
def test_photographs_are_turned_upright(tmp_path: Path, kind: str, held: int) -> None:
    content = photograph(held, kind)
    for write in SETS:
        path = write(tmp_path / write.__name__, content, f".{kind.lower()}")
        assert np.array_equal(corners(path, ImageOptions()), CORNERS), write
        as_stored = corners(path, ImageOptions(exif_orientation=False))
        assert np.array_equal(as_stored, STORED[held]), write


def test_a_tiff_is_always_upright(tmp_path: Path) -> None:
    path = as_folder(tmp_path / "x", photograph(6, "TIFF"), ".tif")
    for turned in (True, False):
        assert np.array_equal(corners(path, ImageOptions(exif_orientation=turned)), CORNERS)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01" * 40,
    ],
)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it tolerates
def test_an_exif_that_is_none_leaves_the_image_as_it_is(exif: bytes) -> None:
    buffer = io.BytesIO()
    Image.fromarray(CORNERS.repeat(16, 0).repeat(16, 1)).save(buffer, "JPEG", exif=exif)
    with Image.open(buffer) as image:
        assert np.array_equal(np.asarray(upright(image)), np.asarray(image))


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def halves(mode: str) -> Image.Image:
    """Left half opaque black, right half transparent with a hidden colour."""
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 255))
    image.paste((200, 200, 200, 0), (8, 0, 16, 16))
    return image.convert(mode)


GREY = np.where(np.arange(16) < 8, 0, 200)[None].repeat(16, 0)
PALETTE = Image.fromarray(np.where(GREY > 0, 1, 0).astype(np.uint8), "P")
PALETTE.putpalette([0, 0, 0, 200, 200, 200])
TRANSPARENT = {
    "RGBA": saved(halves("RGBA")),
    "LA": saved(halves("LA")),
    "WebP": saved(halves("RGBA"), "WEBP", lossless=True, exact=True),
    "TIFF": saved(halves("RGBA"), "TIFF"),
    "palette": saved(PALETTE, transparency=1),
    "palette with alpha": saved(PALETTE, transparency=b"\xff\x00"),
    "GIF": saved(PALETTE, "GIF", transparency=1),
    "grey": saved(Image.fromarray(GREY.astype(np.uint8)), transparency=200),
    "16 bits": saved(Image.fromarray((GREY * 257).astype(np.uint16)), transparency=200 * 257),
    "RGB": saved(Image.fromarray(GREY.astype(np.uint8)).convert("RGB"), transparency=(200,) * 3),
    "1": saved(Image.fromarray(GREY > 0), transparency=255),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_is_transparent_gets_the_background(tmp_path: Path, kind: str) -> None:
    hidden = 255 if kind == "1" else 200
    suffix = {"WebP": ".webp", "TIFF": ".tiff", "GIF": ".gif"}.get(kind, ".png")
    for write in SETS:
        path = write(tmp_path / write.__name__, TRANSPARENT[kind], suffix)
        for background, seen in (
            ("white", (255, 255, 255)),
            ("#102030", (16, 32, 48)),
            ("none", (hidden,) * 3),
        ):
            pixels = open_images(path, ImageOptions(background=background)).read(16).pixels[0]
            assert (pixels[:, :8] == 0).all()
            assert (pixels[:, 8:] == seen).all(), (write, background)
        assert (open_images(path).read(16).pixels[0, :, 8:] == 255).all()


def test_half_transparent_is_half_each(tmp_path: Path) -> None:
    content = saved(Image.new("RGBA", (16, 16), (0, 0, 200, 51)))
    path = as_folder(tmp_path / "x", content, ".png")
    assert open_images(path).read(16).pixels[0, 0, 0].tolist() == [204, 204, 244]


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_numbers_of_32_bits_are_no_colours(tmp_path: Path, dtype: str) -> None:
    path = as_folder(tmp_path / "x", saved(Image.new("RGB", (16, 16))), ".png")
    Image.fromarray(np.zeros((16, 16), dtype)).save(path / "a" / "1.tif")
    images = open_images(path).read(16)
    assert images.skipped == (str(path / "a" / "1.tif"),)
    assert len(images.pixels) == 2


@pytest.mark.parametrize("write", SETS)
def test_another_reading_is_another_fingerprint(
    tmp_path: Path, write: Callable[[Path, bytes, str], Path]
) -> None:
    path = write(tmp_path / "x", saved(halves("RGBA")), ".png")
    options = [
        *(ImageOptions(), ImageOptions(background="#fff"), ImageOptions(background="none")),
        *(ImageOptions(exif_orientation=False), ImageOptions(background="black")),
    ]
    found = [open_images(path, each).fingerprint() for each in options]
    assert found[0] == found[1]  # the same colour
    assert len(set(found)) == len(found) - 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"no image", "it is no image of a format that is read"),
        (png(0)[:400], "truncated"),
        (saved(Image.new("1", (20_000, 20_000))), "Image size .400000000 pixels. exceeds"),
        (saved(Image.new("1", (10_000, 10_001))), "it has 100,010,000 pixels"),
        (saved(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), "it holds 32-bit numbers"),
    ],
    ids=["empty", "other", "cut off", "enormous", "large", "floats"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_why_an_image_is_skipped_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, reason: str
) -> None:
    path = as_folder(tmp_path / "x", content, ".png")
    with pytest.raises(
        ArtifactError, match=rf"none of its .* first {path}/a/0\.png \(.*({reason})"
    ):
        open_images(path).read(16)
    (path / "a" / "1.png").write_bytes(saved(Image.new("RGB", (16, 16))))
    with caplog.at_level("WARNING"):
        TrainingPixels(open_images(path), 16)
        open_images(path).read(16)
    assert len(caplog.records) == 3
    for record in caplog.records:
        assert re.search(rf"{path}/./0\.png \(.*({reason})", record.getMessage())


def test_a_colour_is_spelt_in_one_way() -> None:
    assert ImageOptions().background == "#ffffff"
    for name in ("white", "#FFF", "rgb(255, 255, 255)"):
        assert ImageOptions(background=name).background == "#ffffff"
    assert ImageOptions(background="none").background == "none"


def test_what_is_no_colour_is_refused() -> None:
    values = {"tokenizer": "t", "data": "d", "out": "o", "background": "nocolour"}
    with pytest.raises(ConfigError, match="background: 'nocolour' is no colour, such as white"):
        load_config(CodesConfig, None, values)
