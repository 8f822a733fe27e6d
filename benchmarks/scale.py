"""What a million images an hour take: the tables of docs/scale.md, measured, computed or assumed.

::

    python benchmarks/scale.py
    python benchmarks/scale.py --price 2.5 --bandwidth 3.35 --kb 60
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
POSITIONS = 256  # of an image of 256 x 256 pixels
IMAGES_PER_HOUR = (10_000, 100_000, 1_000_000, 10_000_000)
KEPT_SECONDS = 600  # as MASC_RESULT_SECONDS
REMEMBERED_BYTES = 100_000 * 1200  # of jobs that have ended (docs/redis.md)
BEATS = 2  # scripts of a worker in a second: `announce` and `renew`
FULL = 0.5  # share of a front end, of a Redis and of GPUs that is planned for


@dataclass(frozen=True, slots=True)
class Transformer:
    """Sizes that decide what a step reads."""

    name: str
    parameters: float
    layers: int
    width: int

    def images_per_second(self, rows: int, terabytes: float, efficiency: float) -> float:
        """Of one GPU whose steps wait for its memory: weights once, keys and values of all rows."""
        cached = 2 * 2 * self.layers * self.width * POSITIONS / 2 * rows  # bytes, on average
        step = (2 * self.parameters + cached) / (1e12 * terabytes * efficiency)
        return rows / 2 / (POSITIONS * step)  # two rows for an image with guidance


TRANSFORMERS = (
    Transformer("GPT-L", 343e6, 24, 1024),
    Transformer("GPT-XL", 775e6, 36, 1280),
    Transformer("GPT-3B", 3.1e9, 24, 3200),
)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="compute what a fleet takes")
    parser.add_argument("--price", type=float, default=3.0, help="of a GPU for an hour, in dollars")
    parser.add_argument("--cpu-price", type=float, default=0.05, help="of a core for an hour")
    parser.add_argument("--bandwidth", type=float, default=4.8, help="of its memory, TB/s")
    parser.add_argument("--efficiency", type=float, default=0.3, help="share of that in a step")
    parser.add_argument("--rows", type=int, default=128, help="of a worker's batch")
    parser.add_argument("--kb", type=float, default=120.0, help="of an image")
    options = parser.parse_args()
    print(head("transformer", "images/s of a GPU", "GPUs for 1,000,000/h", "$ for 1,000 images"))
    for one in TRANSFORMERS:
        rate = one.images_per_second(options.rows, options.bandwidth, options.efficiency)
        gpus = math.ceil(1e6 / 3600 / (rate * FULL))
        print(line(one.name, f"{rate:.0f}", gpus, f"{gpus * options.price / 1000:.3f}"))
    amounts = ("images/hour", "images/s", "GPUs (GPT-XL)", "front ends", "Redis, % of a core")
    print("\n" + head(*amounts, "its network, MB/s", "kept results, GB", "$ for 1,000 images"))
    for images in IMAGES_PER_HOUR:
        print(row(images, options))


def line(*cells: object) -> str:
    """A row of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def head(*columns: str) -> str:
    """The first two rows of a table."""
    return line(*columns) + "\n|" + "---|" * len(columns)


def row(images: int, options: argparse.Namespace) -> str:
    """A line of the second table."""
    per_second = images / 3600
    rate = TRANSFORMERS[1].images_per_second(options.rows, options.bandwidth, options.efficiency)
    gpus = math.ceil(per_second / (rate * FULL))
    front_ends = max(2, math.ceil(per_second / (requests_per_second() * FULL)))
    micros, scripts = redis_costs()
    redis = 1e-6 * micros * (scripts * per_second + BEATS * gpus)
    megabytes = per_second * options.kb / 1000 * 3  # in, out and to a replica
    kept = (KEPT_SECONDS * per_second * options.kb * 1000 + REMEMBERED_BYTES) / 1e9
    cores = front_ends + 2 + 2  # Redis and its replica: one each, and one to write files
    price = (gpus * options.price + cores * options.cpu_price) / images * 1000
    counts = (f"{images:,}", f"{per_second:.0f}", gpus, front_ends)
    return line(*counts, f"{100 * redis:.1f}", f"{megabytes:.0f}", f"{kept:.1f}", f"{price:.3f}")


def requests_per_second() -> float:
    """Of one front end, as `service.py` has measured."""
    found = json.loads((RESULTS / "service-cpu.json").read_text())
    return max(float(one["per_second"]) for one in found["rows"])


def redis_costs() -> tuple[float, float]:
    """Microseconds of a script, and scripts of an image, as `fleet.py` has measured."""
    rows = json.loads((RESULTS / "fleet-cpu.json").read_text())["rows"]
    full = [one for one in rows if one["load"] == "full" and one["version"] == "now"]
    return min(one["script_us"] for one in full), max(one["scripts_per_image"] for one in full)


if __name__ == "__main__":
    main()
