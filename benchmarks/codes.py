"""Time how fast codes come from a code cache: the data loading of a transformer's training.

::

    python benchmarks/codes.py [--images 50000] [--shard 8192] [--batch 256] [--seconds 5]

Builds a cache as ImageNet's would be (ten variants of 256 positions, 16 bits, V = 16,384) of
random codes, and draws batches of random images and variants from its memory map, in one thread and
in two. ``take`` gives int64 codes, ``take + encode`` int64 clusters of a prior with K = 8,192. With
``--shard 320`` there are as many shards as ImageNet has. The files are in the page cache: what a
disk adds is not measured.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from masc_core.arrays import IntArray
from masc_core.prior import ClusterMap
from training.data.code_cache import CodeCache, CodeIndex, write_index, write_shard

NUM_CODES, NUM_CLUSTERS, POSITIONS, CLASSES = 16384, 8192, 256, 1000
THREADS = (1, 2)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="time the reading of codes")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--shard", type=int, default=8192, help="images a shard")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    options = parser.parse_args()
    prior = ClusterMap.from_labels(np.arange(NUM_CODES) % NUM_CLUSTERS)
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), options.images, options.shard)
        started = time.perf_counter()
        cache = CodeCache.open(Path(folder))
        opened = time.perf_counter() - started
        print(
            f"{len(cache):,} images, {cache.index.num_shards} shards, batches of {options.batch} "
            f"({platform.machine()}); opened and checked in {opened:.2f} s\n"
        )
        ways: dict[str, Callable[[IntArray, IntArray], object]] = {
            "take": cache.take,
            "take + encode": lambda images, variants: prior.encode(cache.take(images, variants)),
        }
        print("| images/s |" + "".join(f" {n} threads |" for n in THREADS))
        print("|---|" + "---|" * len(THREADS))
        for name, way in ways.items():
            paces = [pace(way, cache, options.batch, n, options.seconds) for n in THREADS]
            print(f"| {name} |" + "".join(f" {p:,.0f} |" for p in paces), flush=True)


def build(
    folder: Path,
    num_images: int,
    shard_images: int,
    *,
    num_codes: int = NUM_CODES,
    num_positions: int = POSITIONS,
    num_classes: int = CLASSES,
) -> None:
    """Write a cache of random codes, ten variants of each image."""
    generator = np.random.default_rng(0)
    index = CodeIndex(
        tokenizer_sha256="0" * 64,
        files_sha256="0" * 64,
        image_size=256,
        variants="ten_crop",
        crop_range=1.1,
        num_codes=num_codes,
        num_positions=num_positions,
        num_files=num_images,
        shard_files=shard_images,
        class_names=tuple(map(str, range(num_classes))),
    )
    shards = []
    for number in range(index.num_shards):
        count = min(shard_images, num_images - number * shard_images)
        shape = (count, index.num_variants, num_positions)
        codes = generator.integers(num_codes, size=shape, dtype=index.dtype)
        labels = generator.integers(num_classes, size=count)
        shards.append(write_shard(folder, number, codes, labels))
    write_index(folder, index.model_copy(update={"shards": tuple(shards)}))


def pace(
    way: Callable[[IntArray, IntArray], object],
    cache: CodeCache,
    batch: int,
    num_threads: int,
    seconds: float,
) -> float:
    """Images a second, of all threads together."""
    taken = [0] * num_threads

    def run(thread: int) -> None:
        generator = np.random.default_rng(thread)
        while time.perf_counter() < end:
            images = generator.integers(len(cache), size=batch)
            way(images, generator.integers(cache.index.num_variants, size=batch))
            taken[thread] += batch

    started = time.perf_counter()
    end = started + seconds
    threads = [threading.Thread(target=run, args=(i,)) for i in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(taken) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
