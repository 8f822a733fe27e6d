from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.metrics.archive import image_archive


def test_numpy_reads_what_was_written_in_batches(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    with image_archive(tmp_path / "s.npz", 5, 4) as archive:
        archive.append(pixels[:3])
        archive.append(pixels[3:])
    with np.load(tmp_path / "s.npz") as found:
        assert found.files == ["arr_0"]
        assert np.array_equal(found["arr_0"], pixels)


def test_an_interrupted_archive_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), image_archive(tmp_path / "s.npz", 5, 4):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
