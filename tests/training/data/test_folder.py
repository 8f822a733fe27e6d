from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masc_core.errors import ArtifactError, ConfigError
from tests.tiny_images import CLASSES, make_images
from training.data.folder import ImageFolder


def test_lists_classes_and_files_in_order(tmp_path: Path) -> None:
    folder = ImageFolder.scan(make_images(tmp_path / "train", per_class=3))
    assert folder.class_names == CLASSES
    assert folder.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert folder.files[:3] == ("bar/000.png", "bar/001.png", "bar/002.png")


@pytest.mark.parametrize("beside", [True, False])
def test_names_come_from_classes_txt(tmp_path: Path, *, beside: bool) -> None:
    root = make_images(tmp_path / "train", per_class=1)
    table = (tmp_path if beside else root) / "classes.txt"
    table.write_text("disc\tround thing\nbar\ta bar\n")
    assert ImageFolder.scan(root).class_names == ("a bar", "round thing", "stripes")


def test_reads_what_the_files_hold(tmp_path: Path) -> None:
    folder = ImageFolder.scan(make_images(tmp_path / "train", per_class=2))
    images = folder.read(16)
    assert images.pixels.shape == (6, 16, 16, 3)
    for pixels, file in zip(images.pixels, folder.files, strict=True):
        assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / "train" / file)))
    some = folder.read(16, np.array([4, 1]))
    assert np.array_equal(some.pixels, images.pixels[[4, 1]])
    assert some.labels.tolist() == [2, 0]


def test_other_modes_and_sizes_become_rgb_squares(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "grey"
    folder.mkdir(parents=True)
    Image.new("L", (40, 24), 77).save(folder / "wide.jpg")
    Image.new("RGBA", (8, 20), (1, 2, 3, 4)).save(folder / "tall.png")
    images = ImageFolder.scan(tmp_path / "train").read(16)
    assert images.pixels.shape == (2, 16, 16, 3)


def test_unreadable_files_are_skipped_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_images(tmp_path / "train", per_class=2)
    (root / "bar" / "000.png").write_bytes(b"not an image")
    whole = (root / "disc" / "001.png").read_bytes()
    (root / "disc" / "001.png").write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING):
        images = ImageFolder.scan(root).read(16)
    assert images.labels.tolist() == [0, 1, 2, 2]
    assert len(images.pixels) == 4
    assert [Path(p).name for p in images.skipped] == ["000.png", "001.png"]
    assert "skipped 2" in caplog.text


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"")
    with pytest.raises(ArtifactError, match="none of its images"):
        ImageFolder.scan(tmp_path).read(16)


def test_spread_touches_every_class(tmp_path: Path) -> None:
    folder = ImageFolder.scan(make_images(tmp_path / "train", per_class=10))
    chosen = folder.spread(6)
    assert len(set(chosen.tolist())) == 6
    assert {folder.labels[i] for i in chosen} == {0, 1, 2}
    assert folder.spread(1000).tolist() == list(range(30))


def test_missing_empty_and_classless_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        ImageFolder.scan(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no class folders"):
        ImageFolder.scan(tmp_path)
    make_images(tmp_path / "train", per_class=1)
    (tmp_path / "train" / ".thumbnails").mkdir()
    assert ImageFolder.scan(tmp_path / "train").class_names == CLASSES
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty: a class folder without images"):
        ImageFolder.scan(tmp_path / "train")


def test_the_fingerprint_is_of_names_and_sizes(tmp_path: Path) -> None:
    root = make_images(tmp_path / "train", per_class=1)
    before = ImageFolder.scan(root).fingerprint()
    copy = make_images(tmp_path / "copy", per_class=1)
    assert ImageFolder.scan(copy).fingerprint() == before
    (root / "bar" / "000.png").rename(root / "bar" / "001.png")
    assert ImageFolder.scan(root).fingerprint() != before
