"""Training images as pixels: from memory where they fit, decoded as they are needed otherwise.

`take` is a function of its arguments and the files alone, so an item looks the
same wherever the images are held and whichever process asks. An image that cannot be read is
replaced by the next one that can, label and all, and named once.

Centre crops are held in memory up to a budget. Random crops need the whole image and are always
decoded anew; the operating system keeps the files, which are smaller than their pixels.

Legend: N images, B items of a batch, S pixels a side.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Literal

import numpy as np
from PIL import Image

from masc_core.arrays import IntArray
from masc_core.errors import ArtifactError
from masc_core.images import Pixels, center_crop
from training.data.crops import random_crop
from training.data.source import ImageSource
from training.loop.task import ItemRandomBits

logger = logging.getLogger(__name__)

Crop = Literal["center", "random"]

MEMORY_BUDGET = 4 << 30
MAX_THREADS = 16


class TrainingPixels:
    """Crops of the images of a set.

    Parameters
    ----------
    crop : ``center``, or ADM's ``random`` one
    flip : whether to mirror half of the items
    budget : bytes of pixels to hold in memory at most

    Attributes
    ----------
    held : centre crops uint8 (N, S, S, 3), or None where images are decoded as they are needed

    Raises
    ------
    ArtifactError : not one image can be read
    """

    def __init__(
        self,
        source: ImageSource,
        image_size: int,
        *,
        crop: Crop = "center",
        flip: bool = False,
        budget: int = MEMORY_BUDGET,
    ) -> None:
        self.source, self.image_size, self.crop, self.flip = source, image_size, crop, flip
        self._unreadable: set[int] = set()
        self._lock = Lock()
        self._threads = ThreadPoolExecutor(min(MAX_THREADS, len(os.sched_getaffinity(0))))
        self.held: Pixels | None = None
        if crop == "center" and len(source) * image_size**2 * 3 <= budget:
            everything = np.arange(len(source))
            self.held, self._replacements = self._decode(everything, None)
        else:
            self._first_readable(0)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the images that were found to be unreadable, so far."""
        return tuple(self.source.name(i) for i in sorted(self._unreadable))

    def take(self, indices: IntArray, random_bits: ItemRandomBits) -> Pixels:
        """Crops uint8 (B, S, S, 3) of the images ``indices``, int64 (B,).

        The random words, uint64 (B, 4), are of the mirror, of the crop's length, top and left.
        """
        return self.take_labelled(indices, random_bits)[0]

    def take_labelled(
        self, indices: IntArray, random_bits: ItemRandomBits
    ) -> tuple[Pixels, IntArray]:
        """Crops of images, as `take`, and the labels int64 (B,) of what they show."""
        if self.held is None:
            pixels, shown = self._decode(indices, random_bits)
        else:
            pixels, shown = self.held[indices], self._replacements[indices]
        if self.flip:
            mirrored = random_bits[:, 0] >> np.uint64(63) == 1
            pixels[mirrored] = pixels[mirrored, :, ::-1]
        return pixels, self.source.labels[shown]

    def _decode(
        self, indices: IntArray, random_bits: ItemRandomBits | None
    ) -> tuple[Pixels, IntArray]:
        """Crops uint8 (B, S, S, 3), and int64 (B,) which images they show."""
        pixels = np.empty((len(indices), self.image_size, self.image_size, 3), np.uint8)
        shown = np.empty(len(indices), np.int64)

        def fill(row: int) -> None:
            shown[row], image = self._first_readable(int(indices[row]))
            if self.crop == "center" or random_bits is None:
                square = center_crop(image, self.image_size)
            else:
                _, length, top, left = random_bits[row].tolist()
                square = random_crop(image, self.image_size, (length, top, left))
            pixels[row] = np.asarray(square)

        for _ in self._threads.map(fill, range(len(indices))):
            pass
        return pixels, shown

    def _first_readable(self, index: int) -> tuple[int, Image.Image]:
        """Decode an image, or the first behind it that can be decoded."""
        for step in range(len(self.source)):
            at = (index + step) % len(self.source)
            if at in self._unreadable:
                continue
            image = self.source.decode(at)
            if image is not None:
                return at, image
            self._replace(at)
        reason = f"none of its images can be read, first {self.source.why_unreadable(0)}"
        raise ArtifactError(self.source.root, reason)

    def _replace(self, index: int) -> None:
        with self._lock:  # several threads may have tried it at once
            if index in self._unreadable:
                return
            self._unreadable.add(index)
        logger.warning(
            "cannot be read, the next image replaces it: %s", self.source.why_unreadable(index)
        )
