"""Time what front end and queue add to a request, with workers that make their images at once.

::

    python benchmarks/service.py                                 # Redis, one worker
    python benchmarks/service.py --queue memory://               # the queue inside one process
    python benchmarks/service.py --clients 1,50,200 --rates 150 --out benchmarks/results

A Redis of its own, one front end, one worker and the load generator (`masc bench`) share the
processors of this machine. The worker answers every job with the same image of 32x32 pixels, so all
that is left is the way there and back. Milliseconds are those of whole requests. Clients of the
closed loop ask again at once, which shows how much the service takes and makes them wait for each
other; the open loop has so many arrivals a second, as 50 clients have that each ask three times a
second, and shows what a request costs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image
from prometheus_client import CollectorRegistry

from masc_core.bundle.registry import Registry
from server.app import create_app
from server.process import listen, serve
from server.settings import load_settings
from worker.jobs.connect import connect
from worker.jobs.job import Job
from worker.jobs.outcome import ImageOutput, JobResult, Timings
from worker.jobs.queue import JobConsumer, QueueLimits, WorkerStatus

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # before packages that install tests, too

from tests.redis_server import RedisServer  # noqa: E402 - not installed

MODEL = "cifar10"
AT_ONCE = 64  # rows that the worker takes at a time
HEAD = """| queue | load | requests/s | p50 ms | p90 ms | p99 ms | max ms | failed |
|---|---|---|---|---|---|---|---|"""


class Row(NamedTuple):
    """One measurement."""

    queue: str
    load: str
    per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    failed: int

    def line(self) -> str:
        """As a row of the table."""
        times = [self.p50_ms, self.p90_ms, self.p99_ms, self.max_ms]
        cells = [self.queue, self.load, f"{self.per_second:.0f}", *(f"{ms:.1f}" for ms in times)]
        return "| " + " | ".join(map(str, [*cells, self.failed])) + " |"


def main() -> None:
    """Print the table, or be the worker or the front end of a measurement."""
    parser = argparse.ArgumentParser(description="time front end and queue")
    parser.add_argument("--queue", default="redis", help="redis (one of its own), or memory://")
    parser.add_argument("--clients", default="1,50", help="of closed loops")
    parser.add_argument("--rates", default="150", help="arrivals a second, of open loops")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--out", type=Path, help="folder for service-cpu.md and service-cpu.json")
    parser.add_argument("--work", metavar="URL", help="be the worker of a queue")
    parser.add_argument("--embedded", action="store_true", help="be front end and worker in one")
    options = parser.parse_args()
    if options.work:
        work(connect(options.work, QueueLimits()))
        return
    if options.embedded:
        serve_embedded()
        return
    print(HEAD, flush=True)
    rows: list[Row] = []
    loads = [("--clients", clients) for clients in options.clients.split(",")]
    loads += [("--rate", rate) for rate in options.rates.split(",")]
    for load in loads:
        with service(options.queue) as url:
            rows.append(measure(url, options.queue, load, options.seconds))
        print(rows[-1].line(), flush=True)
    if options.out is not None:
        write(options.out, rows)


def work(queue: JobConsumer) -> None:
    """Answer every job at once, until killed."""
    manifest = Registry(ROOT / "models").manifest(MODEL)
    status = WorkerStatus("instant", ready=True, model=MODEL, version=manifest.version)
    image = picture()
    announced = 0.0
    while True:
        if time.monotonic() - announced > 1.0:
            queue.announce(status)
            announced = time.monotonic()
        for lease in queue.claim(MODEL, AT_ONCE, 0.2):
            queue.report([(lease, answer(lease.job, image, manifest.version))])


def picture() -> bytes:
    """A PNG as large as those of the model are."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def answer(job: Job, image: bytes, version: str) -> JobResult:
    """The images of a job."""
    entropies = (7.0,) * 64
    images = tuple(
        ImageOutput(image, job.request.image_seed(i), entropies, 7.0, 0.7)
        for i in range(job.request.num_images)
    )
    return JobResult(images, MODEL, version, "0" * 64, Timings())


def serve_embedded() -> None:
    """The front end with the queue inside, and the worker in a thread of it."""
    settings = load_settings(port=0, models_dir=ROOT / "models")
    queue = connect("memory://", settings.limits)
    app = create_app(settings, queue, Registry(settings.models_dir), CollectorRegistry())
    threading.Thread(target=work, args=(queue,), daemon=True).start()
    with listen(settings.host, settings.port, keys=False) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
        serve(app, listener)


@contextmanager
def service(queue: str) -> Iterator[str]:
    """The address of a service whose worker is ready."""
    with ExitStack() as stack:
        me = [sys.executable, str(Path(__file__))]
        if queue == "memory://":
            front = stack.enter_context(process([*me, "--embedded"]))
        else:
            redis = stack.enter_context(RedisServer(appendonly="yes", appendfsync="everysec"))
            stack.enter_context(process([*me, "--work", redis.url]))
            command = [sys.executable, "-m", "masc", "serve", "--port", "0"]
            front = stack.enter_context(process([*command, "--queue", redis.url]))
        assert front.stderr is not None  # noqa: S101 - for the type checker
        line = next(line for line in front.stderr if "http://" in line)
        # What it says further is read and dropped, or it would wait for a reader.
        threading.Thread(target=front.stderr.read, daemon=True).start()
        url = line[line.index("http://") :].strip()
        while not is_ready(url):
            time.sleep(0.05)
        yield url


@contextmanager
def process(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Run beside; killed at the end."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "MASC_MODELS_DIR": str(ROOT / "models")}
    running = subprocess.Popen(  # noqa: S603 - our own programs
        command, cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def is_ready(url: str) -> bool:
    """Whether a worker is ready."""
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def measure(url: str, queue: str, load: tuple[str, str], seconds: float) -> Row:
    """Load a service with `masc bench`; ``load`` is its option and what it is to be."""
    with tempfile.TemporaryDirectory() as folder:
        options = [*load, "--duration", seconds, "--warm-up", 2, "--out", folder]
        subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-m", "masc", "bench", url, *map(str, options)],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        report: dict[str, Any] = json.loads((Path(folder) / "bench.json").read_text())
    return row_of(report, queue, " ".join(load).removeprefix("--"))


def row_of(report: dict[str, Any], queue: str, load: str) -> Row:
    """What a report of `masc bench` says."""
    latency = report["latency"]
    return Row(
        queue=queue,
        load=load,
        per_second=report["throughput"]["requests_per_second"],
        p50_ms=1e3 * latency["p50"],
        p90_ms=1e3 * latency["p90"],
        p99_ms=1e3 * latency["p99"],
        max_ms=1e3 * latency["max"],
        failed=report["sent"] - report["ok"],
    )


def write(folder: Path, rows: Sequence[Row]) -> None:
    """Keep the table."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    table = "\n".join([machine, "", HEAD, *(row.line() for row in rows)])
    (folder / "service-cpu.md").write_text(f"{table}\n")
    document = {"machine": machine, "rows": [row._asdict() for row in rows]}
    (folder / "service-cpu.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
