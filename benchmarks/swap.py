"""Time how a worker changes its model for another one, and what its clients notice.

::

    python benchmarks/swap.py --device cuda [--sizes B,L,B]   # LlamaGen's sizes and VQ-16
    python benchmarks/swap.py --quick                         # tiny models, as on the CPU anyway

Weights are random. One client asks for one image after the other. A row a change of versions:
seconds from the activation to the first image of the new version, and milliseconds an image, the
median with nothing to load and the slowest while the next version is made ready. On a GPU another
size is compiled and recorded meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from prometheus_client import CollectorRegistry

from masc_core.bundle.manifest import Defaults, ModelCard
from masc_core.bundle.registry import Registry
from masc_core.bundle.write import BundleParts, draft_version
from masc_core.device import resolve_device
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.vq import VQConfig, VQModel
from masc_core.prior import ClusterMap
from worker.jobs.job import GenerationRequest, Job
from worker.jobs.memory import MemoryQueue
from worker.jobs.outcome import JobResult
from worker.main import LoopThread, build_worker
from worker.settings import load_settings

NAME = "swapped"
CLASSES = tuple(f"class {number}" for number in range(10))
LLAMAGEN = {"B": "GPT-B", "L": "GPT-L", "XL": "GPT-XL"}
NUM_BEFORE = 5  # images of a version before the next one is made active
HEAD = (
    "| version | model | s until it serves | ms an image | slowest meanwhile | mode |\n"
    "|---|---|---|---|---|---|"
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """A transformer and a tokenizer that fit each other."""

    gpt: GPTConfig
    vq: VQConfig

    def parts(self, seed: int) -> BundleParts:
        """Models with random weights; also of the head, which is new as zeros."""
        torch.manual_seed(seed)
        model = GPT(self.gpt)
        torch.nn.init.normal_(model.output.weight, std=0.02)
        labels = np.arange(self.vq.num_codes) % self.gpt.vocab_size
        tokenizer = VQModel(self.vq)
        return BundleParts(model.eval(), tokenizer.eval(), ClusterMap.from_labels(labels))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="time the change of versions")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sizes", default="", help="of the versions, in order: B, L, XL")
    parser.add_argument("--quick", action="store_true", help="three tiny models")
    options = parser.parse_args()
    on_gpu = resolve_device(options.device).type == "cuda"
    is_tiny = options.quick or not (on_gpu or options.sizes)
    names = ["8", "16", "8"] if is_tiny else (options.sizes or "B,L,B").split(",")
    with tempfile.TemporaryDirectory() as folder:
        models = Registry(Path(folder))
        for number, name in enumerate(names, 1):
            save(models, str(number), tiny(int(name)) if is_tiny else released(name))
        asyncio.run(change(models, names, options.device))


def released(name: str) -> Sizes:
    """One of LlamaGen's transformers over 8,192 clusters, and VQ-16."""
    gpt = GPTConfig.named(LLAMAGEN[name], vocab_size=8192, num_classes=len(CLASSES))
    return Sizes(gpt, VQConfig())


def tiny(dim: int) -> Sizes:
    """Four by four positions, sixteen by sixteen pixels."""
    gpt = GPTConfig(16, dim, n_layer=2, n_head=2, num_classes=len(CLASSES), block_size=16)
    return Sizes(gpt, VQConfig(32, 4, ch=32, ch_mult=(1, 1, 2), num_res_blocks=1, z_channels=32))


def save(models: Registry, version: str, sizes: Sizes) -> None:
    """Write a version; the first one is made active."""
    card = ModelCard(
        name=NAME,
        version=version,
        created=datetime.now(UTC),
        class_names=CLASSES,
        defaults=Defaults(cfg_scale=2.0),
        provenance={"weights": "random"},
        metrics={},
    )
    with draft_version(models, NAME, version) as draft:
        draft.write(card, sizes.parts(int(version)))
    if version == "1":
        models.activate(NAME, version)


async def change(models: Registry, names: list[str], device: str) -> None:
    """Serve the versions one after the other, and print a line for each change."""
    queue, registry = MemoryQueue(), CollectorRegistry()
    settings = load_settings(models_dir=models.root, device=device, max_batch=8)
    worker = build_worker(settings, queue, registry)
    thread = LoopThread(worker)
    thread.start()
    print(f"{settings.device}, torch {torch.__version__}\n\n{HEAD}", flush=True)
    for number, name in enumerate(names[1:], 2):
        before = [(await timed(queue))[1] for _ in range(NUM_BEFORE)][1:]
        models.activate(NAME, str(number))
        started, slowest, version = time.perf_counter(), 0.0, ""
        while version != str(number):
            version, seconds = await timed(queue)
            slowest = max(slowest, seconds)
            (status,) = worker.statuses
            if status.refused:
                raise SystemExit(f"swap: version {number} is refused: {status.detail}")
        until = time.perf_counter() - started
        print(
            f"| {number} | {name} | {until:.1f} | {1e3 * statistics.median(before):.0f} "
            f"| {1e3 * slowest:.0f} | {mode(registry)} |",
            flush=True,
        )
    worker.stop()
    thread.join()


async def timed(queue: MemoryQueue) -> tuple[str, float]:
    """Version and seconds of one image."""
    job = Job(GenerationRequest(model=NAME, class_id=0, cfg_scale=2.0, seed=0))
    started = time.perf_counter()
    await queue.submit(job)
    outcome = await queue.outcome(job.id)
    if not isinstance(outcome, JobResult):
        raise SystemExit(f"swap: the image failed: {outcome}")
    return outcome.version, time.perf_counter() - started


def mode(registry: CollectorRegistry) -> str:
    """How the worker makes its steps."""
    (gauge,) = (metric for metric in registry.collect() if metric.name == "masc_engine_mode")
    return " ".join(sample.labels["mode"] for sample in gauge.samples)


if __name__ == "__main__":
    main()
