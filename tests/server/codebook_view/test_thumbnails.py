from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from masc_core.images import contact_sheet
from server.codebook_view import thumbnails
from server.codebook_view.thumbnails import SIDE, cut_thumbnails, is_sheet


def sheet(num_classes: int, columns: int, side: int) -> bytes:
    """A grey level a class."""
    images = [np.full((side, side, 3), 10 + 2 * i, np.uint8) for i in range(num_classes)]
    file = io.BytesIO()
    names = [f"class {i}" for i in range(num_classes)]
    contact_sheet(images, columns, captions=names).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("num_classes", "columns", "side"),
    [(1, 10, 48), (7, 10, 20), (10, 10, 96), (23, 10, 16), (100, 10, 40), (12, 10, 200)],
)
def test_every_class_gets_its_own_image(num_classes: int, columns: int, side: int) -> None:
    found = cut_thumbnails(sheet(num_classes, columns, side), num_classes)
    assert len(found) == num_classes
    for label, content in enumerate(found):
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == "WEBP"
            assert image.size == (min(side, SIDE),) * 2
            pixels = np.asarray(image.convert("RGB")).astype(int)
        assert abs(pixels - (10 + 2 * label)).max() <= 1


def test_what_is_no_sheet_of_these_classes_is_refused() -> None:
    whole = sheet(5, 10, 20)
    with pytest.raises(ValueError, match="not an image"):
        cut_thumbnails(b"a picture", 5)
    with pytest.raises(ValueError, match="not an image"):
        cut_thumbnails(sheet(5, 10, 20)[:200], 5)
    start = whole.index(b"IDAT")  # whose length ends before it
    with pytest.raises(ValueError, match="not an image"):
        cut_thumbnails(whole[: start - 1] + b"\x10" + whole[start:], 5)
    for num_classes in (4, 6, 50):
        with pytest.raises(ValueError, match="do not fill"):
            cut_thumbnails(sheet(5, 10, 20), num_classes)


def some_of(shown: int, num_classes: int, side: int = 40) -> bytes:
    """A sheet of fewer classes than there are, as an import with few samples makes it."""
    assert shown < num_classes
    return sheet(shown, 10, side)


@pytest.mark.parametrize(
    ("shown", "num_classes", "side"),
    [(4, 100, 112), (4, 5, 40), (41, 45, 40), (100, 1000, 20), (9, 10, 40)],
)
def test_a_sheet_of_some_of_the_classes_is_refused(shown: int, num_classes: int, side: int) -> None:
    with pytest.raises(ValueError, match=r"do not fill|has fewer"):
        cut_thumbnails(some_of(shown, num_classes, side), num_classes)


def test_other_columns_than_those_of_publish_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fill"):
        cut_thumbnails(sheet(12, 4, 40), 12)


@pytest.mark.parametrize("mode", ["P", "RGBA", "L"])
def test_other_modes_are_cut_too(mode: str) -> None:
    file = io.BytesIO()
    with Image.open(io.BytesIO(sheet(3, 10, 20))) as image:
        image.convert(mode).save(file, "PNG")
    assert len(cut_thumbnails(file.getvalue(), 3)) == 3


def test_a_sheet_that_is_too_large_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "samples.png"
    path.write_bytes(sheet(20, 10, 40))
    assert is_sheet(path, 20)
    monkeypatch.setattr(thumbnails, "MAX_PIXELS", 418 * 110 - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("was decoded"))
    with pytest.raises(ValueError, match="has 418x110 pixels, more than 45,979"):
        cut_thumbnails(path.read_bytes(), 20)
    assert not is_sheet(path, 20)


def test_only_the_size_of_a_file_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("was decoded"))
    path = tmp_path / "samples.png"
    path.write_bytes(sheet(20, 10, 40))
    assert is_sheet(path, 20)
    assert not is_sheet(path, 30)
    path.write_bytes(b"a picture")
    assert not is_sheet(path, 20)
    assert not is_sheet(tmp_path / "gone.png", 20)
