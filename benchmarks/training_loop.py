"""Time the training loop on synthetic codes: images/s, MFU, and what the loop adds to a bare one.

::

    python benchmarks/training_loop.py [--device cuda] [--sizes B,L] [--batch 256] [--out FOLDER]
    python benchmarks/training_loop.py --processes 2  # and `fit` as one process a core
    python benchmarks/training_loop.py --quick      # a tiny model, for a try

On a GPU the transformers have LlamaGen's sizes: 256 positions, 8,192 clusters out of 16,384 codes,
bfloat16, compiled. On the CPU there is the shipped model's size, as it is shipped (compiled, in
bfloat16 where the processor computes in it) and "plain", in float32 as PyTorch runs it. One row a
size: the bare loop is plain PyTorch over the same model, optimiser and clipping, with one batch
that lies ready; `fit` is the project's, which reads and maps codes, logs, and checks every loss it
logs. Both are timed in turns, and medians are compared.
"Products" are the matrix products of the linear layers alone, forward and backward, in
the same precision: what no training step can be faster than. FLOPs are counted as in
`training.metrics.step_cost`. GB are the most that tensors took on the GPU, where both loops have a
model, and in brackets what `training.metrics.step_cost` estimates for that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from codes import build  # benchmarks/codes.py
from torch import nn

from masc_core.device import has_bfloat16, resolve_device
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.prior import ClusterMap
from training.config import LoopConfig
from training.data.cluster_data import ClusterData
from training.loop.distributed import Ranks, init_distributed
from training.loop.optimizer import adamw
from training.loop.run_dir import Run
from training.loop.task import TrainedModule, TrainingTask
from training.loop.trainer import fit
from training.metrics.step_cost import flops_per_image, peak_flops, step_bytes
from training.stages.transformer import loss_module_of

LLAMAGEN = {"B": "GPT-B", "L": "GPT-L", "XL": "GPT-XL"}
WARM_UP = 3
HEAD = (
    "| model | parameters | batch | products, ms a step | bare, ms a step | bare/products "
    "| fit, ms a step | fit/bare | images/s | MFU | GB |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Case:
    """A transformer and how it is trained."""

    name: str
    gpt: GPTConfig
    num_codes: int
    batch: int
    micro_batch: int
    bfloat16: bool
    compiled: bool


@dataclass(frozen=True)
class Row:
    """What was measured of a case: medians of seconds a step, and the ratio of `fit` to bare."""

    name: str
    parameters: int
    batch: int
    products_seconds: float
    bare_seconds: float
    fit_seconds: float
    images_per_second: float
    mfu: float | None
    peak_gb: float | None
    estimated_gb: float

    @property
    def ratio(self) -> float:
        """Time of `fit` over that of the bare loop."""
        return self.fit_seconds / self.bare_seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="time the training loop")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sizes", default="", help="of B, L, XL; the shipped model's on the CPU")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--micro-batch", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10, help="a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--processes", type=int, help="of torchrun that share a batch, on a CPU")
    parser.add_argument("--share", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="a tiny model, one short turn")
    parser.add_argument("--out", type=Path, help="folder for training-<device>.json and .md")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.turns = 2, 1
    if options.share:
        measure_share(options)
        return
    if options.processes is not None and options.processes < 2:
        parser.error("--processes: at least 2")
    if options.processes and resolve_device(options.device).type != "cpu":
        parser.error("--processes: is for the CPU; give --device cpu")
    with init_distributed(options.device) as ranks:
        title = f"{describe(ranks.device)}, torch {torch.__version__}, {options.turns} turns"
        print(f"{title}\n\n{HEAD}")
        rows = []
        for case in cases(options, ranks.device):
            rows.append(measure(case, ranks, options.steps, options.turns))
            print(line(rows[-1]), flush=True)
    shared = {}
    if options.processes:
        shared = dict(shared_pace(options.processes))
        for name, pace in shared.items():
            print(processes_line(name, options.processes, pace))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        found: dict[str, object] = {"device": describe(ranks.device), "torch": torch.__version__}
        found["rows"] = [vars(row) | {"ratio": row.ratio} for row in rows]
        if shared:
            found["processes"] = {"count": options.processes, "images_per_second": shared}
        path = options.out / f"training-{ranks.device.type}.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
        more = [processes_line(name, options.processes, pace) for name, pace in shared.items()]
        table = "\n".join([title, "", HEAD, *map(line, rows), "", *more, ""])
        path.with_suffix(".md").write_text(table)


def processes_line(name: str, processes: int, pace: float) -> str:
    """A sentence below the table."""
    return f"{name}, {processes} processes of a thread each share a batch: {pace:.0f} images/s"


def shared_pace(processes: int) -> Iterator[tuple[str, float]]:
    """Images a second of each case where processes of torchrun share a batch, by name."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), *sys.argv, "--share"]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(  # noqa: S603 - this very program
        command, env=alone, check=True, stdout=subprocess.PIPE, text=True
    )
    for found in done.stdout.splitlines():
        name, _, pace = found.rpartition(" ")
        yield name, float(pace)


def measure_share(options: argparse.Namespace) -> None:
    """Time `fit` in one of the processes that share a batch; the first one says how fast it was."""
    with init_distributed(options.device) as ranks:
        for case in cases(options, ranks.device):
            with tempfile.TemporaryDirectory() as folder:
                data = synthetic(Path(folder), case)
                whole = Whole(Path(folder) / "run", case, data, ranks)
                whole.take(WARM_UP)
                times = [whole.take(options.steps) for _ in range(options.turns)]
            if ranks.is_main:
                print(case.name, case.batch * options.steps / statistics.median(times), flush=True)


def describe(device: torch.device) -> str:
    """Name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads, {platform.machine()}"


def cases(options: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    """What is to be measured."""
    gpu = device.type == "cuda"
    if options.quick:
        tiny = GPTConfig(16, 32, 2, 2, num_classes=10, block_size=16)
        yield Case("tiny", tiny, 64, 8, 4, bfloat16=gpu, compiled=gpu)
        return
    sizes = options.sizes or ("B,L" if gpu else "")
    if not sizes:
        shipped = GPTConfig(1024, 256, 6, 4, num_classes=10, block_size=64)
        bfloat16 = has_bfloat16(device)  # as precision = "auto" decides
        for name, fast in (("shipped", True), ("shipped, plain", False)):
            low = bfloat16 and fast
            yield Case(name, shipped, 2048, 64, options.micro_batch, bfloat16=low, compiled=fast)
    for size in filter(None, sizes.split(",")):
        gpt = GPTConfig.named(LLAMAGEN[size], vocab_size=8192)
        yield Case(size, gpt, 16384, options.batch, options.micro_batch, bfloat16=gpu, compiled=gpu)


def measure(case: Case, ranks: Ranks, steps: int, turns: int) -> Row:
    """Time both loops in turns."""
    if ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(ranks.device)
    with tempfile.TemporaryDirectory() as folder:
        data = synthetic(Path(folder), case)
        bare, whole = Bare(case, data, ranks), Whole(Path(folder) / "run", case, data, ranks)
        for loop in (bare, whole):
            loop.take(WARM_UP)
        times = [(bare.take(steps) / steps, whole.take(steps) / steps) for _ in range(turns)]
        products = statistics.median(products_seconds(case, ranks.device) for _ in range(turns))
    bare_seconds, fit_seconds = map(statistics.median, zip(*times, strict=True))
    pace = case.batch / fit_seconds
    peak = peak_flops(ranks.device, 0.0)
    return Row(
        case.name,
        sum(p.numel() for p in bare.model.parameters()),
        case.batch,
        products,
        bare_seconds,
        fit_seconds,
        pace,
        flops_per_image(case.gpt) * pace / peak if peak else None,
        peak_gb(ranks.device),
        (step_bytes(case.gpt, case.micro_batch or case.batch) + step_bytes(case.gpt, 0)) / 1e9,
    )


def products_seconds(case: Case, device: torch.device) -> float:
    """Seconds of a step's products: of each linear layer the output and both gradients."""
    dtype = torch.bfloat16 if case.bfloat16 else torch.float32
    rows = (case.micro_batch or case.batch) * case.gpt.block_size
    with torch.device("meta"):
        shapes = [m.weight.shape for m in GPT(case.gpt).modules() if isinstance(m, nn.Linear)]
    seconds = 0.0
    for shape in set(shapes):
        weight = torch.randn(shape, device=device, dtype=dtype)
        x = torch.randn(rows, shape[1], device=device, dtype=dtype)
        y = x @ weight.t()
        for repeat in range(2):  # the first one warms up
            synchronise(device)
            started = time.perf_counter()
            _ = x @ weight.t(), y @ weight, y.t() @ x
            synchronise(device)
            seconds += repeat * (time.perf_counter() - started) * shapes.count(shape)
    return seconds * case.batch / (case.micro_batch or case.batch)


def peak_gb(device: torch.device) -> float | None:
    """The most that tensors have taken on a GPU."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def line(row: Row) -> str:
    """A row of the table."""
    mfu = "" if row.mfu is None else f"{row.mfu:.1%}"
    memory = "" if row.peak_gb is None else f"{row.peak_gb:.1f} ({row.estimated_gb:.1f})"
    return (
        f"| {row.name} | {row.parameters / 1e6:.1f} M | {row.batch} "
        f"| {row.products_seconds * 1e3:.1f} | {row.bare_seconds * 1e3:.1f} "
        f"| {row.bare_seconds / row.products_seconds:.2f} | {row.fit_seconds * 1e3:.1f} "
        f"| {row.ratio:.3f} | {row.images_per_second:.0f} | {mfu} "
        f"| {memory} |"
    )


def trained(case: Case, device: torch.device) -> TrainedModule:
    """A model and its optimiser."""
    torch.manual_seed(0)
    model = GPT(case.gpt).to(device)
    loss_module = loss_module_of(model, compiled=case.compiled)
    return TrainedModule(model, loss_module, adamw(model, 1e-4, 0.05))


class Bare:
    """Plain PyTorch over one batch that lies ready."""

    def __init__(self, case: Case, data: ClusterData, ranks: Ranks) -> None:
        self._case, self._device = case, ranks.device
        self._module = trained(case, ranks.device)
        self.model = self._module.model
        random_bits = np.zeros((case.batch, 4), np.uint64)
        batch = data.batch(np.arange(case.batch), random_bits)
        micro = case.micro_batch or case.batch
        parts = [torch.split(tensor.to(ranks.device), micro) for tensor in batch]
        self._parts = list(zip(*parts, strict=True))

    def take(self, steps: int) -> float:
        """Seconds for some steps."""
        model, optimizer = self.model, self._module.optimizer
        model.train()
        started = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            for part in self._parts:
                kind = self._device.type
                with torch.autocast(kind, dtype=torch.bfloat16, enabled=self._case.bfloat16):
                    loss = self._module.loss_module(*part)["loss"] / len(self._parts)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        synchronise(self._device)
        return time.perf_counter() - started


class Whole:
    """The project's loop, which ends after the steps of a turn and goes on at the next."""

    def __init__(self, folder: Path, case: Case, data: ClusterData, ranks: Ranks) -> None:
        self._folder, self._case, self._data, self._ranks = folder, case, data, ranks
        self._module = trained(case, ranks.device)

    def take(self, steps: int) -> float:
        """Seconds of some steps, without the time until the first and after the last."""
        marks: list[float] = []

        def after_step(step: int) -> None:
            if step in {1, steps + 1}:
                synchronise(self._ranks.device)
                marks.append(time.perf_counter())

        config = LoopConfig.model_validate(
            {
                "out": self._folder,
                "epochs": 1,
                "batch_size": self._case.batch,
                "micro_batch": self._case.micro_batch,
                "precision": "bfloat16" if self._case.bfloat16 else "float32",
                "log_every": 5,
                "checkpoint_every": 10**9,
            }
        )
        task = TrainingTask(
            (self._module,),
            self._case.batch * (steps + 1),
            lambda indices, random_bits: self._data.batch(
                indices % len(self._data.train), random_bits
            ),
            validate=lambda: {"objective": 0.0},
            save_best=lambda _: None,
            after_step=after_step,
        )
        with (
            tempfile.TemporaryDirectory() as out,
            Run(Path(out), config, ranks=self._ranks) as run,
        ):
            fit(run, config, task)
        return marks[1] - marks[0]


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def synthetic(folder: Path, case: Case, images: int = 4096) -> ClusterData:
    """A cache of random codes, and a prior that groups them at random."""
    build(
        folder,
        images,
        images,
        num_codes=case.num_codes,
        num_positions=case.gpt.block_size,
        num_classes=case.gpt.num_classes,
    )
    ClusterMap.from_labels(np.arange(case.num_codes) % case.gpt.vocab_size).save(
        folder / "prior.npz"
    )
    return ClusterData(folder, folder, folder / "prior.npz")


if __name__ == "__main__":
    main()
