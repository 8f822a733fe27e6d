"""A few small real image files in class folders, for the stages to train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("bar", "disc", "stripes")


def make_images(root: Path, per_class: int = 12, size: int = 16, seed: int = 0) -> Path:
    """Write ``root/<class>/<i>.png``: bars, discs and stripes in random colours, with noise."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    for name in CLASSES:
        folder = root / name
        folder.mkdir(parents=True)
        for i in range(per_class):
            at = generator.uniform(0.3, 0.7)
            mask = {
                "bar": np.abs(x - at) < 0.2,
                "disc": (x - at) ** 2 + (y - 0.5) ** 2 < 0.1,
                "stripes": np.sin(20 * (y + at)) > 0,
            }[name]
            front, back = generator.uniform(0, 255, (2, 3))
            pixels = np.where(mask[..., None], front, back) + generator.normal(
                0, 4, (size, size, 3)
            )
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03d}.png")
    return root
