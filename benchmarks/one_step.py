"""Measure the step and the service, also beside another checkout, in turns on one machine.

::

    python benchmarks/one_step.py                                   # this checkout
    git worktree add ../before COMMIT
    python benchmarks/one_step.py --before ../before --out benchmarks/results

Every figure is taken by a process of its own that imports one checkout, one after the other, as
often as ``--turns`` says; the table has medians. The shipped model is this checkout's in both. The
other checkout needs the modules that are imported here: for one from before they were moved, run
this program as it was then.

* *service*: images/s of `masc serve` with its defaults under 8 clients that ask again at once.
* *engine*: images/s of the engine alone with 8 images in it, of which another begins whenever one
  has ended, rendered, on as many threads as prove fastest.
* *operators*, *ms*: of one step, 8 guided images in lockstep, one thread.
* *staggered ÷ lockstep*: images/s at positions that are spread evenly over the image, over those
  at one position, half way.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path

import torch

from masc_core.bundle.read import Bundle, load_bundle
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.prior import ClusterMap
from masc_core.sampling.in_cluster import CodeSampler
from masc_core.sampling.params import SamplingParams
from server.bench.cli import JSON_FILE
from worker.engine.engine import Engine
from worker.engine.request import FinishedImage, ImageTask

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "models"
CLIENTS = 8
SECONDS = 15.0  # of the load on the service
NUM_CLUSTERS = 8192

Parts = tuple[GPT, CodeSampler]
Metrics = dict[str, float]


def main() -> None:
    """Print the table, or be the process that takes one measurement."""
    parser = argparse.ArgumentParser(description="measure the step and the service")
    parser.add_argument("--before", type=Path, help="another checkout, for the column before")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--figures", default=",".join(MEASUREMENTS), help="those to take")
    parser.add_argument("--out", type=Path, help="folder for one-step-cpu.md")
    parser.add_argument("--take", choices=sorted(MEASUREMENTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.take:
        sys.stdout.write(json.dumps(MEASUREMENTS[options.take]()) + "\n")
        return
    roots = {"now": ROOT} if options.before is None else {"before": options.before, "now": ROOT}
    taken = take_all(options.figures.split(","), roots, options.turns)
    table = [heading(), "", *lines(taken, list(roots))]
    sys.stdout.write("\n".join(table) + "\n")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "one-step-cpu.md").write_text("\n".join(table) + "\n", "utf-8")


def take_all(names: list[str], roots: Mapping[str, Path], turns: int) -> dict[str, Metrics]:
    """Medians of all metrics by checkout, of processes that run in turns."""
    values: dict[str, dict[str, list[float]]] = {root: {} for root in roots}
    for name in names:
        for _ in range(turns):
            for root, path in roots.items():
                for metric, value in take(name, path).items():
                    values[root].setdefault(metric, []).append(value)
    return {
        root: {metric: statistics.median(taken) for metric, taken in metrics.items()}
        for root, metrics in values.items()
    }


def take(name: str, root: Path) -> Metrics:
    """Let a process of one checkout take one measurement."""
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, __file__, "--take", name],
        cwd=root,
        env=environment(root),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    metrics: Metrics = json.loads(done.stdout.splitlines()[-1])
    sys.stderr.write(f"{root} {metrics}\n")
    return metrics


def environment(root: Path) -> dict[str, str]:
    """Of a process that imports one checkout and has no settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MASC_")}
    return kept | {"PYTHONPATH": str(root), "MASC_MODELS_DIR": str(MODELS)}


def service() -> Metrics:
    """Images/s of the whole service, and seconds until it is ready."""
    started = time.perf_counter()
    with served() as url:
        ready = time.perf_counter() - started
        bench([url, "--clients", str(CLIENTS), "--duration", "3"])  # warm
        report = bench([url, "--clients", str(CLIENTS), "--duration", str(SECONDS)])
    return {"service": report, "ready": ready}


@contextmanager
def served() -> Iterator[str]:
    """`masc serve` with its defaults, ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "masc", "serve", "--port", str(port)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:  # noqa: S603 - ours
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url, process)
            yield url
        finally:
            process.terminate()


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    """Ask for its readiness until it is there."""
    for _ in range(1200):
        if process.poll() is not None:
            raise SystemExit("masc serve has ended")
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=1):  # noqa: S310 - our own
                return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("masc serve does not get ready")


def bench(arguments: list[str]) -> float:
    """Images/s of `masc bench`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "masc", "bench", *arguments, "--out", folder]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - ours
        report = json.loads((Path(folder) / JSON_FILE).read_text("utf-8"))
    return float(report["throughput"]["images_per_second"])


def engine() -> Metrics:
    """Images/s of the engine with as many images as clients, rendered."""
    bundle = shipped()
    rates = []
    for num_threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(num_threads)
        rates.append(refilled(bundle, 64))
    return {"engine": max(rates)}


def refilled(bundle: Bundle, num_images: int) -> float:
    """Images/s where another image begins whenever one has ended."""
    running = Engine(bundle.transformer, bundle.code_sampler, 2 * CLIENTS)
    numbers, ended = count(), 0
    spread(running, bundle.transformer.config.block_size, CLIENTS, numbers)
    started = time.perf_counter()
    while ended < num_images:
        for outcome in running.step():
            assert isinstance(outcome, FinishedImage)  # noqa: S101
            bundle.render(outcome.codes[None])
            running.add(task(next(numbers)))
            ended += 1
    return num_images / (time.perf_counter() - started)


def step() -> Metrics:
    """Operators and milliseconds of a step of the shipped model."""
    torch.set_num_threads(1)
    bundle = shipped()
    running = Engine(bundle.transformer, bundle.code_sampler, 2 * CLIENTS)
    for number in range(CLIENTS):
        running.add(task(number))
    for _ in range(24):
        running.step()
    milliseconds = 1e3 * statistics.median(times_of(running.step, 24))
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        running.step()
    return {"operators": len(profile.events() or ()), "ms": milliseconds}


def stagger_shipped() -> Metrics:
    """The shipped model, 16 images, one thread."""
    torch.set_num_threads(1)
    bundle = shipped()
    return {"stagger_shipped": staggered((bundle.transformer, bundle.code_sampler), 16, 9)}


def stagger_gpt_b() -> Metrics:
    """GPT-B, 8 images."""
    torch.manual_seed(0)
    model = GPT(GPTConfig.named("GPT-B", vocab_size=NUM_CLUSTERS)).eval()
    torch.nn.init.normal_(model.output.weight, std=0.02)
    code_sampler = CodeSampler(ClusterMap.identity(NUM_CLUSTERS))
    return {"stagger_gpt_b": staggered((model, code_sampler), 8, 1)}


def staggered(parts: Parts, num_images: int, num_rounds: int) -> float:
    """Seconds of a step in lockstep over those at positions that are spread evenly."""
    length = parts[0].config.block_size
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for is_spread in [True, False] * num_rounds:
        running = Engine(*parts, 2 * num_images)
        if is_spread:
            spread(running, length, num_images, count())
        else:
            for number in range(num_images):
                running.add(task(number))
            for _ in range(length // 2 - 2):
                running.step()
        seconds[is_spread] += times_of(running.step, length // num_images - 1)
    return statistics.median(seconds[False]) / statistics.median(seconds[True])


def spread(running: Engine, length: int, num_images: int, numbers: Iterator[int]) -> None:
    """Let images begin one after the other, evenly over the time that one takes."""
    for image in range(num_images):
        running.add(task(next(numbers)))
        for _ in range(length // num_images if image < num_images - 1 else 1):
            running.step()


def times_of(work: Callable[[], object], num: int) -> list[float]:
    """Seconds of each of some calls."""
    marks = [time.perf_counter()]
    for _ in range(num):
        work()
        marks.append(time.perf_counter())
    return [after - before for before, after in pairwise(marks)]


def shipped() -> Bundle:
    """The model that ships with this repository."""
    return load_bundle(MODELS / "cifar10" / "1", torch.device("cpu"), torch.float32)


def task(number: int) -> ImageTask:
    """A guided image like all others, but for class and seed."""
    return ImageTask("bench", number, SamplingParams(number % 10, 3.0, seed=number))


MEASUREMENTS: dict[str, Callable[[], Metrics]] = {
    "service": service,
    "engine": engine,
    "step": step,
    "stagger_shipped": stagger_shipped,
    "stagger_gpt_b": stagger_gpt_b,
}

# Metric, how it is written, and the row's name; a pair of metrics is their ratio.
ROWS: list[tuple[str | tuple[str, str], str, str]] = [
    ("service", ".1f", f"service, shipped model, {CLIENTS} clients: images/s"),
    ("engine", ".1f", "its engine alone at that occupancy: images/s"),
    (("service", "engine"), ".2f", "service ÷ engine"),
    ("ready", ".1f", "`masc serve` ready after: s"),
    ("operators", ".0f", "operator calls in a step of the shipped model"),
    ("ms", ".1f", "ms a step, batch 8, one thread"),
    ("stagger_shipped", ".2f", "staggered ÷ lockstep, shipped model, 16 images"),
    ("stagger_gpt_b", ".2f", "staggered ÷ lockstep, GPT-B, 8 images"),
]


def lines(taken: Mapping[str, Metrics], roots: list[str]) -> list[str]:
    """The table in Markdown."""
    made = ["| figure | " + " | ".join(roots) + " |", "|---|" + "---|" * len(roots)]
    for metric, form, name in ROWS:
        needed = (metric,) if isinstance(metric, str) else metric
        if all(one in taken[root] for one in needed for root in roots):
            cells = [format(value_of(taken[root], needed), form) for root in roots]
            made.append(f"| {name} | " + " | ".join(cells) + " |")
    return made


def value_of(metrics: Metrics, needed: tuple[str, ...]) -> float:
    """A metric, or the ratio of two."""
    return metrics[needed[0]] / metrics[needed[1]] if len(needed) > 1 else metrics[needed[0]]


def heading() -> str:
    """What computed."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text("utf-8") if cpuinfo.exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    name = model[1] if model else platform.machine()
    return f"{name}, {os.cpu_count()} cores, float32, torch {torch.__version__}"


if __name__ == "__main__":
    main()
