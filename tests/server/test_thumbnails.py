from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from masc_core.images import contact_sheet
from server.thumbnails import SIDE, cut_thumbnails


def sheet(num_classes: int, columns: int, side: int) -> bytes:
    """A grey level a class."""
    images = [np.full((side, side, 3), 10 + 2 * i, np.uint8) for i in range(num_classes)]
    file = io.BytesIO()
    names = [f"class {i}" for i in range(num_classes)]
    contact_sheet(images, columns, captions=names).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("num_classes", "columns", "side"),
    [(1, 10, 48), (7, 10, 20), (10, 10, 96), (23, 10, 16), (100, 10, 40), (12, 4, 200)],
)
def test_every_class_gets_its_own_image(num_classes: int, columns: int, side: int) -> None:
    thumbnails = cut_thumbnails(sheet(num_classes, columns, side), num_classes)
    assert len(thumbnails) == num_classes
    for label, content in enumerate(thumbnails):
        with Image.open(io.BytesIO(content)) as image:
            assert image.format == "WEBP"
            assert image.size == (min(side, SIDE),) * 2
            pixels = np.asarray(image.convert("RGB")).astype(int)
        assert abs(pixels - (10 + 2 * label)).max() <= 1


def test_what_is_no_sheet_of_these_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="not an image"):
        cut_thumbnails(b"a picture", 5)
    with pytest.raises(ValueError, match="not an image"):
        cut_thumbnails(sheet(5, 10, 20)[:200], 5)
    for num_classes in (4, 6, 50):
        with pytest.raises(ValueError, match="do not fill"):
            cut_thumbnails(sheet(5, 10, 20), num_classes)
