"""Time the plain generation loop on the shipped model, rendering included.

::

    python benchmarks/generate.py [--models models] [--batches 1,4,16] [--repeats 5]

One row a batch size: median milliseconds a step, which include what a completer takes, seconds an
image, images a second. CFG scale and decoding are the model's defaults.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from masc_core.bundle.read import Bundle, load_bundle
from masc_core.bundle.registry import Registry
from masc_core.device import choose_dtype, resolve_device
from masc_core.generation.generate import generate
from masc_core.sampling.params import SamplingParams


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="time the plain generation loop")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--model", default="")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batches", default="1,4,16")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    registry = Registry(options.models)
    name = registry.default(options.model)
    device = resolve_device(options.device)
    bundle = load_bundle(registry.path(name), device, choose_dtype("auto", device))
    print(
        f"{name} {bundle.manifest.version} on {bundle.device} ({torch.get_num_threads()} threads, "
        f"{platform.machine()}), torch {torch.__version__}, medians of {options.repeats}\n"
    )
    print("| batch | ms a step | s an image | images/s |\n|---|---|---|---|")
    for batch in map(int, options.batches.split(",")):
        step, total = measure(bundle, batch, options.repeats)
        print(f"| {batch} | {step * 1e3:.1f} | {total / batch:.3f} | {batch / total:.2f} |")


def measure(bundle: Bundle, batch: int, repeats: int) -> tuple[float, float]:
    """Median seconds of a step, and of the whole batch with its rendering."""
    base = SamplingParams(class_id=0, seed=0, **dict(bundle.manifest.defaults))
    num_classes = len(bundle.manifest.class_names)
    params_list = [replace(base, class_id=i % num_classes, seed=i) for i in range(batch)]
    steps, totals = [], []
    for repeat in range(repeats + 1):
        started = time.perf_counter()
        codes = generate(bundle.transformer, bundle.code_sampler, params_list).codes
        if codes.is_cuda:
            torch.cuda.synchronize(codes.device)
        generated = time.perf_counter()
        bundle.render(codes)
        if repeat:  # the first warms up
            totals.append(time.perf_counter() - started)
            steps.append((generated - started) / codes.shape[1])
    return statistics.median(steps), statistics.median(totals)


if __name__ == "__main__":
    main()
