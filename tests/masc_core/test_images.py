"""Crop against the golden case, encoders against decoders, the contact sheet's layout."""

import io
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import ExifTags, Image
from safetensors.numpy import load_file

from masc_core.images import (
    CAPTION_HEIGHT,
    ENCODERS,
    MAX_ASPECT,
    ImageFormat,
    Pixels,
    center_crop,
    contact_sheet,
    encode_image,
    scale_short_side,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "eval" / "images.safetensors"


def photograph(height: int = 48, width: int = 32) -> Pixels:
    """Smooth colours with some noise, so that the lossy encoder has something to do."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([4 * x, 3 * y, 2 * (x + y)], axis=-1)
    return np.clip(smooth + rng.integers(-4, 5, smooth.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_center_crop_reproduces_the_golden_crops(size: int) -> None:
    golden = load_file(GOLDEN)
    crop = np.asarray(center_crop(Image.fromarray(golden["src"]), size))
    # Exact with the Pillow that made them; resampling may round otherwise in another version.
    np.testing.assert_allclose(crop.astype(int), golden[f"crop{size}"].astype(int), atol=2)


@pytest.mark.parametrize("shape", [(17, 100), (100, 17), (16, 16), (5, 7), (33, 32)])
def test_center_crop_gives_the_size_whatever_the_shape(shape: tuple[int, int]) -> None:
    assert center_crop(Image.fromarray(photograph(*shape)), 16).size == (16, 16)


def test_center_crop_leaves_an_image_of_that_size_alone() -> None:
    pixels = photograph(16, 16)
    assert np.array_equal(np.asarray(center_crop(Image.fromarray(pixels), 16)), pixels)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_center_crop_makes_every_mode_rgb(mode: str) -> None:
    assert center_crop(Image.fromarray(photograph()).convert(mode), 8).mode == "RGB"


@pytest.mark.parametrize("used_bits", [16, 12])
def test_sixteen_bits_of_grey_are_as_light_as_eight(tmp_path: Path, used_bits: int) -> None:
    grey = np.arange(64, dtype=np.uint16).reshape(8, 8) * 4
    deep = grey * 257 >> (16 - used_bits)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as image:
        read = np.asarray(center_crop(image, 8))
    np.testing.assert_array_equal(read, np.repeat((deep >> 8)[..., None], 3, -1))


@pytest.mark.parametrize("shape", [(2, 50_000), (50_000, 2), (1, 1_000_000)])
def test_only_what_is_kept_of_a_strip_is_scaled(shape: tuple[int, int]) -> None:
    strip = Image.fromarray(np.zeros(shape, np.uint8))
    scaled = scale_short_side(strip, 256)
    assert min(scaled.size) == 256
    assert max(scaled.size) == 256 * MAX_ASPECT
    assert center_crop(strip, 256).size == (256, 256)


def test_the_middle_of_a_strip_is_kept() -> None:
    wide = np.zeros((4, 400, 3), np.uint8)
    wide[:, 198:202] = 255
    assert np.asarray(center_crop(Image.fromarray(wide), 4)).min() == 255


def test_center_crop_refuses_an_empty_square() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        center_crop(Image.fromarray(photograph()), 0)


@pytest.mark.parametrize("name", get_args(ImageFormat))
def test_encoded_images_decode_to_their_pixels(name: ImageFormat) -> None:
    pixels = photograph()
    data = encode_image(pixels, name)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == ENCODERS[name]["format"]
        decoded = np.asarray(image.convert("RGB"))
    assert np.abs(decoded.astype(int) - pixels).max() <= (12 if name == "jpeg" else 0)


@pytest.mark.parametrize("name", get_args(ImageFormat))
def test_equal_pixels_give_equal_bytes(name: ImageFormat) -> None:
    pixels = photograph()
    assert encode_image(pixels, name) == encode_image(pixels.copy(), name)
    assert encode_image(pixels, name) != encode_image(255 - pixels, name)


@pytest.mark.parametrize("name", get_args(ImageFormat))
def test_a_file_can_say_what_it_is(name: ImageFormat) -> None:
    described = encode_image(photograph(), name, '{"seed": 7}')
    with (
        Image.open(io.BytesIO(described)) as image,
        Image.open(io.BytesIO(encode_image(photograph(), name))) as plain,
    ):
        tags = image.getexif()
        assert image.info.get("Description", tags.get(ExifTags.Base.ImageDescription)) == (
            '{"seed": 7}'
        )
        assert not plain.getexif()
        assert "Description" not in plain.info
        np.testing.assert_array_equal(np.asarray(image), np.asarray(plain))
    assert described == encode_image(photograph(), name, '{"seed": 7}')


def test_what_fits_no_jpeg_is_left_out() -> None:
    assert encode_image(photograph(), "jpeg", "x" * 70_000) == encode_image(photograph(), "jpeg")


def test_contact_sheet_places_images_row_by_row() -> None:
    images = [np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30, 40, 50)]
    sheet = np.asarray(contact_sheet(images, columns=3))
    assert sheet.shape == (2 * 4 + 2, 3 * 6 + 2 * 2, 3)
    assert (sheet[:4, 8:14] == 20).all()
    assert (sheet[6:, 8:14] == 50).all()
    assert (sheet[4:6] == 255).all()
    assert (sheet[6:, 16:] == 255).all()


def test_contact_sheet_is_no_wider_than_its_images() -> None:
    assert contact_sheet([photograph(8, 8)] * 2, columns=10).size == (8 + 2 + 8, 8)


def test_captions_are_written_below_and_leave_the_pixels_alone() -> None:
    pixels = photograph(16, 16)
    sheet = np.asarray(contact_sheet([pixels], 1, captions=["a very long caption"]))
    assert sheet.shape == (16 + CAPTION_HEIGHT, 16, 3)
    assert np.array_equal(sheet[:16], pixels)
    assert (sheet[16:] < 128).any()


def test_contact_sheet_refuses_what_it_cannot_lay_out() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([], 3)
    with pytest.raises(ValueError, match="one size"):
        contact_sheet([photograph(4, 4), photograph(4, 5)], 3)
    with pytest.raises(ValueError, match="shorter"):
        contact_sheet([photograph(4, 4)] * 2, 3, captions=["one"])
