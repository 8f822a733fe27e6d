from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from masc_core.arrays import IntArray
from masc_core.errors import ConfigError
from tests.tiny_images import make_images
from training.data.images import ImageFolder
from training.data.source import ImageSource, require_classes


@dataclass(eq=False)
class InMemory(ImageSource):
    contents: tuple[bytes, ...]

    def __post_init__(self) -> None:
        self.root, self.class_names = Path("memory"), ("a", "b")
        self.labels: IntArray = np.arange(len(self.contents), dtype=np.int64) % 2

    def name(self, index: int) -> str:
        return f"memory:{index}"

    def encoded(self, index: int) -> bytes:
        return self.contents[index]

    def files_sha256(self) -> str:
        return "0"


def photograph(kind: str) -> bytes:
    y, x = np.mgrid[:40, :56]
    pixels = np.stack([4 * y, 3 * x, x + y], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@settings(deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    share=st.floats(0, 1),
)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it tolerates
def test_damage_is_skipped_and_never_an_error(
    kind: str, changes: list[tuple[float, int]], share: float
) -> None:
    content = bytearray(photograph(kind))
    for place, value in changes:
        content[int(place * len(content))] = value
    source = InMemory((bytes(content[: int(share * len(content))]), photograph("PNG")))
    images = source.read(16)
    assert len(images.pixels) + len(images.skipped) == 2
    assert images.labels[-1] == 1


def test_formats_that_run_programs_are_not_opened() -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    assert InMemory((script,)).decode(0) is None


def test_one_class_is_refused_where_classes_count(tmp_path: Path) -> None:
    folder = ImageFolder.scan(make_images(tmp_path / "x", per_class=1))
    require_classes(folder, "data")
    for name in ("bar", "disc"):
        (tmp_path / "x" / name / "000.png").unlink()
        (tmp_path / "x" / name).rmdir()
    with pytest.raises(ConfigError, match=r"data: .*one class only, 'stripes'"):
        require_classes(ImageFolder.scan(tmp_path / "x"), "data")


@pytest.mark.parametrize("name", ["x" * 201, "two\nlines", "\x9b31m"])
def test_classes_that_no_model_could_have_are_refused_at_once(tmp_path: Path, name: str) -> None:
    make_images(tmp_path / "x", per_class=1)
    (tmp_path / "x" / "bar").rename(tmp_path / "x" / name)
    with pytest.raises(ConfigError, match=r"data: classes of .*: [012]: (String|Value error)"):
        require_classes(ImageFolder.scan(tmp_path / "x"), "data")
