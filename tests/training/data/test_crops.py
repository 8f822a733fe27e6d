from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from training.data.crops import below, random_crop, ten_crop_source, ten_crops

WORD = st.integers(0, 2**64 - 1)


class Drawn:
    """Stands in for ``random``: gives out what was drawn, and remembers the ranges."""

    def __init__(self, *random_bits: int) -> None:
        self.random_bits = list(random_bits)

    def randrange(self, start: int, stop: int) -> int:
        return start + self.random_bits.pop(0) * (stop - start) // 2**64


def adm_random_crop(image: Image.Image, size: int, random: Drawn) -> np.ndarray:
    """What ADM's data loader does, step by step and on arrays."""
    short = random.randrange(math.ceil(size / 1.0), math.ceil(size / 0.8) + 1)
    while min(*image.size) >= 2 * short:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = short / min(*image.size)
    image = image.resize(
        (round(image.width * scale), round(image.height * scale)),
        resample=Image.Resampling.BICUBIC,
    )
    pixels = np.array(image)
    top = random.randrange(0, pixels.shape[0] - size + 1)
    left = random.randrange(0, pixels.shape[1] - size + 1)
    return pixels[top : top + size, left : left + size]


def noise(height: int, width: int) -> np.ndarray:
    generator = np.random.default_rng(height * 1000 + width)
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(4, 90), st.integers(4, 90)),
    size=st.integers(4, 24),
    random_bits=st.tuples(WORD, WORD, WORD),
)
def test_random_crops_are_adms(
    shape: tuple[int, int], size: int, random_bits: tuple[int, int, int]
) -> None:
    image = Image.fromarray(noise(*shape))
    crop = np.asarray(random_crop(image, size, random_bits))
    assert crop.shape == (size, size, 3)
    assert np.array_equal(crop, adm_random_crop(image, size, Drawn(*random_bits)))


def test_random_crops_reach_every_corner_and_both_lengths() -> None:
    image = Image.fromarray(noise(16, 16))
    most = 2**64 - 1
    whole = random_crop(image, 16, (0, most, most))
    assert np.array_equal(np.asarray(whole), np.asarray(image))
    larger = image.resize((20, 20), Image.Resampling.BICUBIC)
    for top, left in ((0, 0), (0, most), (most, 0), (most, most)):
        y, x = 4 * (top > 0), 4 * (left > 0)
        corner = random_crop(image, 16, (most, top, left))
        assert np.array_equal(np.asarray(corner), np.asarray(larger.crop((x, y, x + 16, y + 16))))


@given(WORD, st.integers(1, 1000))
def test_words_become_integers_below_a_count(word: int, count: int) -> None:
    assert below(word, count) == math.floor(word * count / 2**64) or word > 2**50
    assert 0 <= below(word, count) < count


def test_words_fall_evenly() -> None:
    random_bits = np.random.default_rng(0).integers(0, 2**64, 9000, dtype=np.uint64).tolist()
    counts = np.bincount([below(word, 9) for word in random_bits])
    assert counts.min() > 850


@pytest.mark.parametrize(("size", "source"), [(256, 281), (384, 422), (64, 70)])
def test_ten_crops_come_from_llamagens_sizes(size: int, source: int) -> None:
    assert ten_crop_source(size, 1.1) == source
    assert ten_crop_source(size, 1.0) == size


def test_ten_crops_are_in_torchvisions_order() -> None:
    source = noise(9, 9)[None]
    crops = ten_crops(source, 4)
    assert crops.shape == (1, 10, 4, 4, 3)
    for first, image in ((0, source[0]), (5, source[0, :, ::-1])):
        expected = [
            image[:4, :4], image[:4, 5:], image[5:, :4], image[5:, 5:], image[2:6, 2:6]
        ]  # fmt: skip
        assert np.array_equal(crops[0, first : first + 5], expected)  # the middle: round(2.5) is 2


def test_ten_crops_of_an_image_of_that_size_are_two() -> None:
    source = noise(4, 4)[None]
    crops = ten_crops(source, 4)[0]
    assert all(np.array_equal(crop, source[0]) for crop in crops[:5])
    assert all(np.array_equal(crop, source[0, :, ::-1]) for crop in crops[5:])
