from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masc_core.errors import ArtifactError
from masc_core.images import center_crop
from tests.tiny_images import make_images
from training.data.crops import random_crop
from training.data.images import ImageFolder
from training.data.pixels import Crop, TrainingPixels
from training.loop.task import ItemRandomBits


def random_bits_for(count: int, seed: int = 0) -> ItemRandomBits:
    return np.random.default_rng(seed).integers(0, 2**64, (count, 4), dtype=np.uint64)


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    return ImageFolder.scan(make_images(tmp_path / "train", per_class=5, size=24))


@pytest.mark.parametrize("flip", [False, True])
def test_held_and_decoded_images_are_the_same(folder: ImageFolder, flip: bool) -> None:
    held = TrainingPixels(folder, 16, flip=flip, budget=15 * 16 * 16 * 3)
    decoded = TrainingPixels(folder, 16, flip=flip, budget=15 * 16 * 16 * 3 - 1)
    assert held.held is not None
    assert decoded.held is None
    assert len(held) == len(decoded) == 15
    indices, random_bits = np.array([3, 14, 3, 0, 7, 7, 7, 9]), random_bits_for(8)
    pixels, labels = held.take_labelled(indices, random_bits)
    assert np.array_equal(pixels, decoded.take(indices, random_bits))
    assert labels.tolist() == folder.labels[indices].tolist()
    for row, index, word in zip(pixels, indices, random_bits[:, 0], strict=True):
        with Image.open(folder.name(index)) as image:
            crop = np.asarray(center_crop(image, 16))
        mirrored = flip and word >= 2**63
        assert np.array_equal(row, crop[:, ::-1] if mirrored else crop)
    again = held.take(indices, random_bits)
    assert np.array_equal(again, pixels)  # what is held was not mirrored in place


def test_random_crops_follow_the_words(folder: ImageFolder) -> None:
    images = TrainingPixels(folder, 16, crop="random", flip=True)
    indices, random_bits = np.array([3, 3, 14]), random_bits_for(3, seed=4)
    random_bits[:, 0] = 2**63
    pixels = images.take(indices, random_bits)
    for row, index, drawn in zip(pixels, indices, random_bits.tolist(), strict=True):
        with Image.open(folder.name(index)) as image:
            crop = random_crop(image, 16, tuple(drawn[1:]))
        assert np.array_equal(row, np.asarray(crop)[:, ::-1])
    assert not np.array_equal(pixels[0], pixels[1])
    assert np.array_equal(images.take(indices[1:], random_bits[1:]), pixels[1:])


@pytest.mark.parametrize(("crop", "budget"), [("center", 1 << 20), ("center", 0), ("random", 0)])
def test_the_next_image_replaces_one_that_cannot_be_read(
    folder: ImageFolder, caplog: pytest.LogCaptureFixture, crop: Crop, budget: int
) -> None:
    for index in (3, 4, 14):
        Path(folder.name(index)).write_bytes(b"?")
    with caplog.at_level(logging.WARNING):
        images = TrainingPixels(folder, 24, crop=crop, budget=budget)
        random_bits = np.zeros((5, 4), np.uint64)
        pixels, labels = images.take_labelled(np.array([3, 4, 5, 14, 0]), random_bits)
    assert all(np.array_equal(pixels[i], pixels[2]) for i in (0, 1))
    assert np.array_equal(pixels[3], pixels[4])  # behind the last comes the first
    assert labels.tolist() == [1, 1, 1, 0, 0]
    assert images.skipped == tuple(folder.name(i) for i in (3, 4, 14))
    assert all(caplog.text.count(name) == 1 for name in images.skipped)


@pytest.mark.parametrize("budget", [1 << 20, 0])
def test_no_readable_image_is_an_error(folder: ImageFolder, budget: int) -> None:
    for index in range(15):
        Path(folder.name(index)).write_bytes(b"")
    with pytest.raises(ArtifactError, match="none of its images can be read"):
        TrainingPixels(folder, 16, budget=budget)


def test_takes_from_many_threads(folder: ImageFolder) -> None:
    images = TrainingPixels(folder, 16, crop="random", flip=True)
    batches = [(np.arange(i, i + 6) % 15, random_bits_for(6, seed=i)) for i in range(12)]
    expected = [images.take(*batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for pixels, alone in zip(
            pool.map(lambda b: images.take(*b), batches), expected, strict=True
        ):
            assert np.array_equal(pixels, alone)
