"""Time the engine beside the plain loop, and hold both against what the machine could do.

::

    python benchmarks/engine.py                                 # GPT-B, batches 1 and 8
    python benchmarks/engine.py --sizes B,L,XL --batches 1,8,32,64,128,256 --device cuda
    python benchmarks/engine.py --llamagen ../LlamaGen          # beside upstream's own sampler
    python benchmarks/engine.py --arrivals 0.7 --out benchmarks/results
    python benchmarks/engine.py --batches 64 --steps 16         # of every image only so many
    python benchmarks/engine.py --systems masc,iar,ctf,gigatok  # others of `SYSTEMS`

Weights are random, K = 8,192 but for IAR's and CTF's, 256 positions, CFG 2: an image is two rows.
Milliseconds a step are medians over all steps of an image. The roofline of a step is the longer of
two times: to read the weights and the keys and values once at the measured bandwidth, and to
compute at the measured rate.
``overhead`` is the share of a step that the engine spends outside `Batch` (on CUDA outside
`GraphBatch.step`), ``rendered`` the images a second with VQ decoding and, of CTF, the completer,
``preview`` what decoding the upper half of every image would cost on top. Arrivals are Poisson, at
the given share of the best throughput.
On CUDA steps are captured graphs. ``deterministic`` are the milliseconds a step where all steps
have one shape; ``flipped`` what that is for: of images made alone and in this batch without it, the
share that differ, and at how many of the positions until then.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from masc_core.bundle.read import serving_decoder
from masc_core.device import choose_dtype, resolve_device
from masc_core.generation.batch import Batch
from masc_core.models.completer import Completer
from masc_core.models.completer_config import CompleterConfig
from masc_core.models.gigatok import GigaTok, GigaTokConfig
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig, Positions
from masc_core.models.gpu_decoder import SIZES
from masc_core.models.kv_cache import KVCache
from masc_core.models.vq import VQConfig, VQModel, to_uint8
from masc_core.prior import ClusterMap
from masc_core.sampling.cfg_schedule import CFGSchedule
from masc_core.sampling.completion import complete_codes
from masc_core.sampling.in_cluster import CodeSampler
from masc_core.sampling.params import SamplingParams
from worker.engine.cuda_graphs import GraphBatch
from worker.engine.engine import Backend, BatchFactory, Engine
from worker.engine.request import FinishedImage, ImageTask

NUM_CODES = 16384
NUM_ALONE = 32  # images that are also made alone
CFG_SCALE = 2.0
MIB = 1 << 20
HEAD = """
| model | batch | ms a step | plain loop | LlamaGen | roofline | of it | overhead | s an image \
| images/s | rendered | preview | deterministic | flipped | MiB |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True, slots=True)
class System:
    """What is drawn, and how."""

    num_clusters: int = 8192  # K
    positions: Positions = "rope2d"
    cfg_schedule: CFGSchedule = "constant"
    num_parts: int = 0  # clusters of IAR's partition; 0 is none
    completed: bool = False  # whether CTF's completer, a GPT of the same size, draws the codes
    is_sequence: bool = False  # codes of GigaTok's S-S tokenizer rather than of VQ-16

    def config(self, size: str) -> GPTConfig:
        """Sizes of the transformer."""
        sizes: dict[str, Any] = {"vocab_size": self.num_clusters, "positions": self.positions}
        if size == "toy":
            return GPTConfig(**sizes, dim=64, n_layer=2, n_head=4)
        return GPTConfig.named(f"GPT-{size}", **sizes)

    def code_sampler(self, size: str, device: torch.device) -> CodeSampler:
        """What makes codes of clusters."""
        labels = np.arange(NUM_CODES) % self.num_clusters
        parts = np.arange(NUM_CODES) % self.num_parts if self.num_parts else None
        return CodeSampler(
            ClusterMap.from_labels(labels),
            device=device,
            completer=self.completer(size, device) if self.completed else None,
            coarse_partition=None if parts is None else ClusterMap.from_labels(parts),
        )

    def completer(self, size: str, device: torch.device) -> Completer:
        """What draws all codes of an image at its end."""
        gpt = asdict(self.config(size)) | {"vocab_size": NUM_CODES}
        with device:
            return Completer(CompleterConfig(**gpt, num_clusters=self.num_clusters)).eval()

    def tokenizer(self, size: str) -> VQModel:
        """What makes images of codes."""
        ch = 32 if size == "toy" else 128
        return GigaTok(GigaTokConfig(ch=ch)) if self.is_sequence else VQModel(VQConfig(ch=ch))

    def task(self, index: int) -> ImageTask:
        """An image like all others, but for class and seed."""
        return ImageTask("bench", index, self.params(index))

    def params(self, index: int) -> SamplingParams:
        """How that image is drawn."""
        return SamplingParams(
            index % 1000,
            CFG_SCALE,
            seed=index,
            decoding="complete" if self.completed else "uniform",
            cfg_schedule=self.cfg_schedule,
        )


SYSTEMS = {
    "masc": System(),
    "iar": System(num_clusters=NUM_CODES, num_parts=128),
    "ctf": System(num_clusters=512, completed=True),
    "gigatok": System(positions="learned", cfg_schedule="step", is_sequence=True),
    "learned": System(positions="learned"),
    "step": System(cfg_schedule="step"),
    "linear": System(cfg_schedule="linear"),
}


@dataclass(frozen=True, slots=True)
class Machine:
    """What the device does at best, measured here."""

    bytes_per_second: float
    flops_per_second: float

    def step_seconds(self, config: GPTConfig, rows: int, item: int, cache_item: int) -> float:
        """Least time of a step in the middle of an image; bytes of a weight, and of a key."""
        weights = config.num_parameters - (config.vocab_size + config.num_class_rows) * config.dim
        cached = rows * config.n_layer * config.block_size * config.dim  # half of keys and values
        read = (weights * item + cached * cache_item) / self.bytes_per_second
        return max(read, 2 * (weights * rows + cached) / self.flops_per_second)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table; milliseconds, images a second, MiB."""

    size: str
    system: str
    batch: int
    step_ms: float
    plain_ms: float
    llamagen_ms: float | None
    roofline_ms: float
    overhead: float
    image_seconds: float
    images_per_second: float
    rendered_per_second: float
    preview_share: float
    deterministic_ms: float | None
    flipped_images: float | None
    flip_rate: float | None
    memory: float


def main() -> None:
    """Print the table, and write it where asked."""
    options = parse()
    device = resolve_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    machine = measure_machine(device, dtype)
    table = [
        (
            f"{device}, {torch.get_num_threads()} threads, {processor(device)}, "
            f"{str(dtype).removeprefix('torch.')}, torch {torch.__version__}; measured "
            f"{machine.bytes_per_second / 1e9:.1f} GB/s, "
            f"{machine.flops_per_second / 1e9:.0f} GFLOP/s"
        ),
        HEAD,
    ]
    print("\n".join(table), flush=True)
    rows: list[Row] = []
    for size, system in product(options.sizes.split(","), options.systems.split(",")):
        bench = Bench(size, system, device, dtype, options.llamagen, options.steps)
        for batch in map(int, options.batches.split(",")):
            rows.append(bench.measure(batch, machine))
            table.append(line(rows[-1]))
            print(table[-1], flush=True)
            write(options.out, device, table, machine, rows)  # what comes next may fail
        if options.arrivals:
            own = [row for row in rows if (row.size, row.system) == (size, system)]
            best = max(own, key=lambda row: row.images_per_second)
            table += ["", bench.arrivals(best, options.arrivals)]
            print("\n".join(table[-2:]), flush=True)
            write(options.out, device, table, machine, rows)


def write(
    folder: Path | None,
    device: torch.device,
    table: Sequence[str],
    machine: Machine,
    rows: Sequence[Row],
) -> None:
    """Keep the table so far, and its figures."""
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"engine-{device.type}"
    stem.with_suffix(".md").write_text("\n".join(table) + "\n", "utf-8")
    figures = {"machine": asdict(machine), "rows": [asdict(row) for row in rows]}
    stem.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description="time the engine")
    parser.add_argument("--sizes", default="B")
    parser.add_argument("--systems", default="masc", help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--arrivals", type=float, default=0.0, help="share of the best throughput")
    parser.add_argument("--llamagen", type=Path, help="a checkout of LlamaGen, to run beside")
    parser.add_argument("--steps", type=int, default=256, help="of every image, 1 to 256")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="a toy, to try the program itself")
    options = parser.parse_args()
    if unknown := set(options.systems.split(",")) - SYSTEMS.keys():
        parser.error(f"no systems {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    if options.quick:
        options.sizes, options.batches, options.steps = "toy", "1,2", 8
    return options


def line(row: Row) -> str:
    """A row of the table, in Markdown."""
    upstream = "-" if row.llamagen_ms is None else f"{row.llamagen_ms:.2f}"
    deterministic = "-" if row.deterministic_ms is None else f"{row.deterministic_ms:.2f}"
    flipped = "-"
    if row.flipped_images is not None:
        flipped = f"{row.flipped_images:.1%}, {row.flip_rate:.1e}"
    return (
        f"| {name(row)} | {row.batch} | {row.step_ms:.2f} | {row.plain_ms:.2f} | {upstream} "
        f"| {row.roofline_ms:.2f} | {row.step_ms / row.roofline_ms:.1f}x | {row.overhead:.1%} "
        f"| {row.image_seconds:.2f} | {row.images_per_second:.2f} | {row.rendered_per_second:.2f} "
        f"| {row.preview_share:.1%} | {deterministic} | {flipped} | {row.memory:.0f} |"
    )


def name(row: Row) -> str:
    """Size and system."""
    return f"GPT-{row.size}" + ("" if row.system == "masc" else f", {row.system}")


class Bench:
    """A model size with random weights, and a VQ-16 decoder."""

    def __init__(
        self,
        size: str,
        system: str,
        device: torch.device,
        dtype: torch.dtype,
        llamagen: Path | None,
        num_steps: int,
    ) -> None:
        torch.manual_seed(0)
        self.num_steps = num_steps
        self.size, self.name, self.device, self.dtype = size, system, device, dtype
        self.system = SYSTEMS[system]
        self.config = self.system.config(size)
        with device:
            self.model = GPT(self.config).to(dtype).eval()
            torch.nn.init.normal_(self.model.output.weight, std=0.02)
            self.tokenizer = self.system.tokenizer(size).eval()
        self.code_sampler = self.system.code_sampler(size, device)
        self.vq_decoder = serving_decoder(self.tokenizer.decoder, device)
        self.make_batch: BatchFactory = GraphBatch if device.type == "cuda" else Batch
        self.upstream: Upstream | None = None
        if llamagen is not None and system == "masc":
            self.upstream = Upstream(llamagen, size, device)

    def measure(self, batch: int, machine: Machine) -> Row:
        """Time a batch of images that start together."""
        steps: list[float] = []
        engine = self._engine(batch, steps)
        self._run(engine, batch, 8)
        steps.clear()
        owner: type = GraphBatch if self.device.type == "cuda" else Batch
        with stopwatch(owner, "step", self.device) as inside:
            started = time.perf_counter()
            self._run(engine, batch, self.num_steps)
            overhead = 1 - sum(inside) / (time.perf_counter() - started)
        steps.clear()
        started = time.perf_counter()
        codes = self._run(engine, batch, self.num_steps)
        seconds = (time.perf_counter() - started) * self.config.block_size / self.num_steps
        flipped = self._flips(engine, codes) if self.device.type == "cuda" else None
        self._render(codes[:1])
        rendering = clock(lambda: self._render(self._completed(codes)), self.device)
        half = codes[:, : codes.shape[1] // 2]
        preview = clock(lambda: self._render(half), self.device)
        plain = self._plain(batch)
        return Row(
            size=self.size,
            system=self.name,
            batch=batch,
            step_ms=1e3 * statistics.median(steps),
            plain_ms=1e3 * plain,
            llamagen_ms=1e3 * self.upstream.step_seconds(batch) if self.upstream else None,
            roofline_ms=1e3 * machine.step_seconds(self.config, 2 * batch, *self._items()),
            overhead=overhead,
            image_seconds=seconds,
            images_per_second=batch / seconds,
            rendered_per_second=batch / (seconds + rendering),
            preview_share=preview / (seconds + rendering),
            deterministic_ms=1e3 * self._deterministic(batch) if flipped else None,
            flipped_images=flipped[0] if flipped else None,
            flip_rate=flipped[1] if flipped else None,
            memory=memory(self.device),
        )

    def arrivals(self, best: Row, share: float) -> str:
        """Latencies when images arrive at a share of the best throughput, one sentence."""
        rate, rng = share * best.images_per_second, random.Random(0)  # noqa: S311
        engine = self._engine(best.batch, [])
        engine.prepare()
        num = max(32, 4 * best.batch)
        due = [0.0]
        while len(due) < num:
            due.append(due[-1] + rng.expovariate(rate))
        latencies: list[float] = []
        occupied: list[int] = []
        started, arrived = time.perf_counter(), 0
        while len(latencies) < num:
            now = time.perf_counter() - started
            while arrived < num and due[arrived] <= now and engine.free_rows >= 2:
                engine.add(self.system.task(arrived))
                arrived += 1
            occupied.append((engine.capacity_rows - engine.free_rows) // 2)
            if not occupied[-1]:
                time.sleep(max(0.0, due[arrived] - now))
                continue
            for outcome in engine.step():
                done = time.perf_counter() - started
                latencies.append(done - due[outcome.task.index])
        occupancy = max(1, round(statistics.fmean(occupied)))
        steps: list[float] = []
        engine = self._engine(occupancy, steps)
        self._run(engine, occupancy, 8)
        steps.clear()
        self._run(engine, occupancy, self.config.block_size)
        alone = sum(steps)
        p50, p95 = statistics.median(latencies), statistics.quantiles(latencies, n=20)[-1]
        return (
            f"{name(best)}: {num} Poisson arrivals at {rate:.2f} images/s ({share:.0%} of the "
            f"best): latency {p50:.2f} s (median), {p95:.2f} s (p95), {p95 / alone:.2f} times that "
            f"of a batch of {occupancy}, the mean occupancy ({alone:.2f} s)."
        )

    def _engine(self, batch: int, steps: list[float], *, deterministic: bool = False) -> Engine:
        """Room for a batch; notes the seconds of its steps."""
        make = partial(GraphBatch, deterministic=True) if deterministic else self.make_batch
        return Engine(
            *(self.model, self.code_sampler, 2 * batch),
            on_step=lambda _, s: steps.append(s),
            backends=[Backend("graphs", make)],
        )

    def _run(self, engine: Engine, batch: int, num_steps: int, *, first: int = 0) -> Tensor:
        """Codes (B, L) of a batch; where it does not come to its end, of nothing in particular."""
        for index in range(first, first + batch):
            engine.add(self.system.task(index))
        codes: list[Tensor] = []
        for _ in range(num_steps):
            for outcome in engine.step():
                assert isinstance(outcome, FinishedImage), outcome  # noqa: S101
                codes.append(outcome.codes)
        for running in engine.tasks:
            engine.cancel(running.key)
        return torch.stack(codes) if codes else self._some_codes(batch)

    def _some_codes(self, batch: int) -> Tensor:
        return torch.randint(NUM_CODES, (batch, self.config.block_size))

    def _deterministic(self, batch: int) -> float:
        """Median seconds of a step where all steps have one shape."""
        steps: list[float] = []
        engine = self._engine(batch, steps, deterministic=True)
        self._run(engine, batch, 8)
        steps.clear()
        self._run(engine, batch, self.num_steps)
        return statistics.median(steps)

    def _flips(self, engine: Engine, together: Tensor) -> tuple[float, float]:
        """Share of images that differ from those made alone; first differences a position."""
        num_images = min(NUM_ALONE, len(together))
        ran, differ = 0, 0
        for index in range(num_images):
            alone = self._run(engine, 1, self.config.block_size, first=index)[0]
            same = int((alone == together[index]).int().cumprod(0).sum())
            differ += same < len(alone)
            ran += min(same + 1, len(alone))
        return differ / num_images, differ / ran

    def _items(self) -> tuple[int, int]:
        """Bytes of a weight, and of a key."""
        cache = KVCache(self.config, 1, self.dtype, self.device)
        return self.dtype.itemsize, cache.layers[0].keys.itemsize

    def _plain(self, num_images: int) -> float:
        """Median seconds of a step of the plain loop."""
        params_list = [self.system.task(index).params for index in range(num_images)]
        rows = sum(params.batch_rows for params in params_list)
        batch = Batch(self.model, self.code_sampler, rows)
        batch.join(params_list)
        marks: list[float] = []
        for _ in range(max(3, self.num_steps)):
            batch.step()
            marks.append(time.perf_counter())
        return statistics.median(b - a for a, b in pairwise(marks))

    @torch.inference_mode()
    def _completed(self, codes: Tensor) -> Tensor:
        """What a completer makes of codes, zeros where few steps were timed."""
        params = [self.system.params(index) for index in range(len(codes))]
        whole = functional.pad(codes, (0, self.config.block_size - codes.shape[1]))
        return complete_codes(self.code_sampler, whole.to(self.device), params)

    @torch.inference_mode()
    def _render(self, codes: Tensor) -> None:
        at_once = 1 if self.device.type == "cpu" else SIZES[-1]
        for part in torch.split(codes.to(self.device), at_once):
            latents = self.tokenizer.latents(part, self.config.grid_size)
            to_uint8(self.vq_decoder(latents)).cpu()


class Upstream:
    """LlamaGen's own model and sampler, float32 on the CPU as its command line has it."""

    def __init__(self, checkout: Path, size: str, device: torch.device) -> None:
        sys.path.insert(0, str(checkout))
        sampler = import_module("autoregressive.models.generate").generate
        make = import_module("autoregressive.models.gpt").GPT_models[f"GPT-{size}"]
        vocabulary = SYSTEMS["masc"].num_clusters
        model = make(vocab_size=vocabulary, block_size=256, num_classes=1000, cls_token_num=1)
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        self._model, self._sampler, self._device = model.to(device, dtype).eval(), sampler, device

    def step_seconds(self, batch: int) -> float:
        """Mean seconds of a step over an image."""
        labels = torch.arange(batch, device=self._device)

        def run(length: int) -> None:
            settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "sample_logits": True}
            self._sampler(self._model, labels, length, cfg_scale=CFG_SCALE, **settings)

        run(4)
        return clock(lambda: run(256), self._device) / 256


class stopwatch:  # noqa: N801 - reads as a function
    """Seconds of every call of a method while the block runs."""

    def __init__(self, owner: type, name: str, device: torch.device) -> None:
        self._owner, self._name, self._device = owner, name, device
        self._method = getattr(owner, name)

    def __enter__(self) -> list[float]:
        seconds: list[float] = []

        def timed(*arguments: object) -> object:
            started = time.perf_counter()
            result = self._method(*arguments)
            synchronize(self._device)
            seconds.append(time.perf_counter() - started)
            return result

        setattr(self._owner, self._name, timed)
        return seconds

    def __exit__(self, *_: object) -> None:
        setattr(self._owner, self._name, self._method)


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Bandwidth of reading half a GiB, and rate of a large matrix product."""
    large = torch.ones(128 * MIB, device=device)
    reading = min(clock(large.sum, device) for _ in range(5))
    side = 1536 if device.type == "cpu" else 8192
    square = torch.randn(side, side, device=device).to(dtype)
    product = min(clock(lambda: square @ square, device) for _ in range(5))
    return Machine(large.nbytes / reading, 2 * side**3 / product)


def clock(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that some work takes."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait until the device has nothing to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory(device: torch.device) -> float:
    """Peak so far in MiB: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def processor(device: torch.device) -> str:
    """Name of what computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines: Sequence[str] = ()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = [row.split(":")[1].strip() for row in lines if row.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
