"""Images as one ``.npz`` for the ADM evaluator: ``arr_0``, uint8 (N, S, S, 3).

The array is written batch by batch, so that 50,000 images need no more memory than a batch.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from masc_core.io.files import atomic_path


class Archive:
    """An array on its way to the disk."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def append(self, pixels: NDArray[np.uint8]) -> None:
        """Write a batch, uint8 (B, S, S, 3)."""
        self._file.write(np.ascontiguousarray(pixels).tobytes())


@contextmanager
def image_archive(path: Path, num_images: int, image_size: int) -> Iterator[Archive]:
    """Lend an archive of exactly ``num_images`` images; ``path`` appears when it is whole."""
    shape = (num_images, image_size, image_size, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        npy.write_array_header_1_0(member, header)
        yield Archive(member)
