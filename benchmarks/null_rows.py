"""What an image would save whose row of the null class rests where its scale is 1.

::

    python benchmarks/null_rows.py --sizes GPT-B,GPT-L

With the schedule `step` the null class has no part in positions before the start, but its keys and
values are read from there on: they would come from one pass over all of these positions, as in
training. So *saved* is the difference of steps with and without null rows, at these positions, less
that pass, as a share of all steps of an image. Flat LlamaGen, 256 positions, float32, random
weights, one thread; times are the thread's own, whatever else the machine does, and medians.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from masc_core.generation.batch import Batch
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.prior import ClusterMap
from masc_core.sampling.in_cluster import CodeSampler
from masc_core.sampling.params import SamplingParams

NUM_CODES = 16384
HEADER = (
    "| model | images | rows that rest | ms a step without them | with | ms of the pass "
    "| saved of an image |"
)


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description="time steps with and without null rows")
    parser.add_argument("--sizes", default="GPT-B", help="of the transformer, with commas")
    parser.add_argument("--images", default="1,4,8", help="in a batch, with commas")
    parser.add_argument("--start", type=float, default=0.18, help="of the schedule")
    parser.add_argument("--out", type=Path, help="folder for the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = [
        f"{platform.machine()}, torch {torch.__version__}, step from {options.start}\n",
        HEADER,
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(table))
    for size in options.sizes.split(","):
        for num in options.images.split(","):
            table.append(row(size, int(num), options.start))
            print(table[-1], flush=True)
    if options.out is not None:
        path = options.out / "null-rows-cpu.md"
        path.write_text("\n".join(table) + "\n", "utf-8")


@torch.inference_mode()
def row(size: str, num_images: int, start: float) -> str:
    """A row of the table."""
    config = GPTConfig.named(size, vocab_size=NUM_CODES)
    model = GPT(config).eval().requires_grad_(requires_grad=False)
    schedule = SamplingParams(0, 2.0, 0, cfg_schedule="step", cfg_start=start)
    resting = sum(scale < 2 for scale in schedule.cfg_scales(config.block_size))
    classes = torch.full((num_images,), config.num_classes)
    tokens = torch.zeros(num_images, resting, dtype=torch.int64)
    catch_up = statistics.median(seconds(lambda: model.hidden(classes, tokens), 5))
    alone, both = (steps(model, num_images, scale, resting) for scale in (1.0, 2.0))
    saved = (resting * (both - alone) - catch_up) / (config.block_size * both)
    return (
        f"| {size} | {num_images} | {resting / (2 * config.block_size):.1%} | {1e3 * alone:.0f} "
        f"| {1e3 * both:.0f} | {1e3 * catch_up:.0f} | {saved:.1%} |"
    )


def steps(model: GPT, num_images: int, cfg_scale: float, num_steps: int) -> float:
    """Seconds of a step, after the first."""
    batch = Batch(model, CodeSampler(ClusterMap.identity(NUM_CODES)), 2 * num_images)
    batch.join([SamplingParams(i, cfg_scale, seed=i) for i in range(num_images)])
    batch.step()
    return statistics.median(seconds(batch.step, num_steps))


def seconds(work: Callable[[], object], times: int) -> Iterator[float]:
    """Seconds that this thread works, each time."""
    for _ in range(times):
        started = time.thread_time()
        work()
        yield time.thread_time() - started


if __name__ == "__main__":
    main()
