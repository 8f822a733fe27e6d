"""Time the levels of PNG's compression, and weigh what they make.

::

    python benchmarks/encoding.py                    # the samples of the models that ship
    python benchmarks/encoding.py --images FOLDER    # images of a folder instead

Every image is brought to 64 and to 256 pixels a side. Milliseconds are medians over the images of
the least of three times, KiB are means.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from pathlib import Path

from PIL import Image

from masc_core.images import center_crop

LEVELS = range(10)
SIDES = (64, 256)
ROOT = Path(__file__).parent.parent


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="time the encoding of images")
    parser.add_argument("--images", type=Path, default=ROOT / "models")
    parser.add_argument("--limit", type=int, default=40)
    options = parser.parse_args()
    paths = sorted(
        path for path in options.images.rglob("*") if path.suffix in {".png", ".jpg", ".JPEG"}
    )
    sources = [Image.open(path).convert("RGB") for path in paths[: options.limit]]
    print("| level |" + "".join(f" {side} px: ms | KiB |" for side in SIDES))
    print("|---|" + "---|---|" * len(SIDES))
    images = {side: [center_crop(source, side) for source in sources] for side in SIDES}
    for level in LEVELS:
        cells = [f"{level}"]
        for side in SIDES:
            measured = [measure(image, level) for image in images[side]]
            seconds, sizes = zip(*measured, strict=True)
            cells += [f"{1e3 * statistics.median(seconds):.2f}"]
            cells += [f"{statistics.fmean(sizes) / 1024:.1f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


def measure(image: Image.Image, level: int) -> tuple[float, int]:
    """Least seconds of three, and bytes."""
    seconds: list[float] = []
    for _ in range(3):
        buffer = io.BytesIO()
        started = time.perf_counter()
        image.save(buffer, "PNG", compress_level=level)
        seconds.append(time.perf_counter() - started)
    return min(seconds), buffer.tell()


if __name__ == "__main__":
    main()
