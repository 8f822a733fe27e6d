"""Time a worker whose Redis is a network away, and count the scripts that it sends there.

::

    python benchmarks/worker_redis.py
    git worktree add ../before v1.0
    python benchmarks/worker_redis.py --before ../before --out benchmarks/results

Workers of the shipped model, each with a database of its own in one Redis, share the processors
of this machine with this program, which submits jobs and relays what the workers send. The relay
adds half a millisecond each way, or nothing; the order of bytes stays, and any number is under way.
Rounds go to one worker after another, and figures are medians over rounds; ratios are of rounds
that follow each other. Of scripts the most of any round is shown: those of the worker alone, with
its heartbeats by themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple, Self

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # before packages that install tests, too

from tests.redis_server import RedisServer  # noqa: E402 - not installed
from worker.jobs.job import GenerationRequest, Job  # noqa: E402
from worker.jobs.outcome import JobResult  # noqa: E402
from worker.jobs.queue import QueueLimits  # noqa: E402
from worker.jobs.redis.queue import RedisQueue  # noqa: E402

MODEL, NUM_CLASSES = "cifar10", 10
MAX_BATCH = 16  # rows
ONE_WAY_SECONDS = 0.0005  # that are added
START_SECONDS = 120.0
SETTLE_SECONDS = 0.3  # after a job, for what its worker still asks
HEARTBEAT = {"announce", "renew"}
SCRIPT = re.compile(rb"\$7\r\nEVALSHA\r\n\$40\r\n([0-9a-f]{40})\r\n")
SCRIPT_BYTES = 60  # of such a match
PRINT_SHAS = """import sys
from worker.jobs.redis.client import load_script
print(*(load_script(name).sha for name in sys.argv[1:]))
"""


class Relay:
    """A way to a port that takes longer; counts the scripts that are sent over it.

    Parameters
    ----------
    port : of the server
    seconds : that every byte takes longer, in either direction
    """

    def __init__(self, port: int, seconds: float) -> None:
        self._target, self._seconds = port, seconds
        self.scripts: Counter[str] = Counter()  # by their digests
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(("127.0.0.1", self._target))
            for source, sink in ((near, far), (far, near)):
                sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                under_way: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
                for work, end in ((self._take, source), (self._pass_on, sink)):
                    threading.Thread(target=work, args=(end, under_way), daemon=True).start()

    def _take(self, source: socket.socket, under_way: SimpleQueue[tuple[float, bytes]]) -> None:
        data, tail = b"-", b""
        while data:
            try:
                data = source.recv(1 << 16)
            except OSError:
                data = b""
            under_way.put((time.perf_counter() + self._seconds, data))
            tail += data
            found = list(SCRIPT.finditer(tail))
            self.scripts.update(match[1].decode() for match in found)
            counted = found[-1].end() if found else 0
            tail = tail[max(counted, len(tail) - SCRIPT_BYTES) :]

    def _pass_on(self, sink: socket.socket, under_way: SimpleQueue[tuple[float, bytes]]) -> None:
        data = b"-"
        while data:
            due, data = under_way.get()
            time.sleep(max(0.0, due - time.perf_counter()))
            with suppress(OSError):  # the other end has gone
                sink.sendall(data)
        sink.close()


class Worker:
    """A worker of a checkout, behind a relay, and the front end of its queue.

    Parameters
    ----------
    checkout : the sources that it runs
    server, database : where its queue is
    seconds : that every byte takes longer on its way to Redis or back
    """

    def __init__(self, checkout: Path, server: RedisServer, database: int, seconds: float) -> None:
        self._relay = Relay(server.port, seconds)
        scripts = checkout / "worker" / "jobs" / "redis" / "scripts"
        names = [file.stem for file in scripts.glob("*.lua")]
        shas = subprocess.check_output(  # noqa: S603 - this project
            [sys.executable, "-c", PRINT_SHAS, *names], cwd=checkout, text=True
        )
        self._names = dict(zip(shas.split(), names, strict=True))
        self.front = RedisQueue(f"redis://127.0.0.1:{server.port}/{database}", QueueLimits())
        variables = {
            "MASC_QUEUE_URL": f"redis://127.0.0.1:{self._relay.port}/{database}",
            "MASC_MODELS_DIR": str(ROOT / "models"),
            "MASC_MAX_BATCH": str(MAX_BATCH),
            "MASC_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
        }
        command = [sys.executable, "-m", "masc", "worker"]
        self._process = subprocess.Popen(  # noqa: S603 - this project
            command, cwd=checkout, env=os.environ | variables, stderr=subprocess.DEVNULL
        )

    async def __aenter__(self) -> Self:
        await self.front.__aenter__()
        async with asyncio.timeout(START_SECONDS):
            while not any(one.ready for one in await self.front.workers()):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        await self.front.__aexit__()

    async def serve(self, jobs: Sequence[Job]) -> float:
        """Seconds until they have all ended well."""
        started = time.perf_counter()
        for job in jobs:
            await self.front.submit(job)
        outcomes = await asyncio.gather(*(self.front.outcome(job.id) for job in jobs))
        seconds = time.perf_counter() - started
        if not all(isinstance(outcome, JobResult) for outcome in outcomes):
            raise SystemExit(f"an image could not be made: {outcomes}")
        for job in jobs:
            await self.front.forget(job.id)
        return seconds

    async def count_scripts(self, job: Job) -> Counter[str]:
        """Scripts that the worker sends for a job that comes alone, by their names."""
        await asyncio.sleep(SETTLE_SECONDS)
        before = Counter(self._relay.scripts)
        await self.serve([job])
        await asyncio.sleep(SETTLE_SECONDS)
        return Counter({self._names[sha]: n for sha, n in (self._relay.scripts - before).items()})


class Pair(NamedTuple):
    """The workers of one checkout."""

    near: Worker
    far: Worker


class Column(NamedTuple):
    """What was measured of one checkout."""

    one_image: str
    one_image_heartbeats: str
    sixteen_images: str
    one_at_a_time_ms: str
    per_second: str
    watched_per_second: str


LABELS = Column(
    "scripts for one image of 64 positions, no stream (target: 8 at most)",
    "heartbeats meanwhile",
    "scripts for a job of 16 images with previews",
    "one image at a time, ms: without, with 1 ms added",
    "images/s: without, with 1 ms added, ratio (target: 0.95)",
    "images/s with previews: without, with 1 ms added, ratio",
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="time a worker that is a network from its Redis")
    parser.add_argument("--before", type=Path, help="another checkout, for a column of its own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=64, help="of one image, in a round")
    parser.add_argument("--out", type=Path, help="folder for worker-redis-cpu.md")
    options = parser.parse_args()
    checkouts = [options.before.resolve(), ROOT] if options.before else [ROOT]
    columns = asyncio.run(measure(checkouts, options.rounds, options.jobs))
    table = ["| | " + " | ".join(["before", "now"][-len(columns) :]) + " |"]
    table.append("|---" * (len(columns) + 1) + "|")
    table += ["| " + " | ".join(cells) + " |" for cells in zip(LABELS, *columns, strict=True)]
    print("\n".join(table))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "worker-redis-cpu.md").write_text("\n".join(table) + "\n", "utf-8")


async def measure(checkouts: Sequence[Path], rounds: int, num_jobs: int) -> list[Column]:
    """One column for each checkout."""
    async with AsyncExitStack() as stack:
        server = stack.enter_context(RedisServer(appendonly="yes", appendfsync="everysec"))
        pairs = []
        for number, checkout in enumerate(checkouts):
            workers = [
                await stack.enter_async_context(Worker(checkout, server, 2 * number + i, seconds))
                for i, seconds in enumerate((0.0, ONE_WAY_SECONDS))
            ]
            pairs.append(Pair(*workers))
        workers = [worker for pair in pairs for worker in pair]
        plain: dict[Worker, list[float]] = {worker: [] for worker in workers}
        watched: dict[Worker, list[float]] = {worker: [] for worker in workers}
        alone: dict[Worker, list[float]] = {worker: [] for worker in workers}
        for _ in range(rounds + 1):
            for worker in workers:
                plain[worker].append(num_jobs / await worker.serve(some_jobs(num_jobs)))
            for worker in workers:
                jobs = some_jobs(num_jobs, previews=True)
                watched[worker].append(num_jobs / await worker.serve(jobs))
            for worker in workers:
                alone[worker] += [1000 * await worker.serve(some_jobs(1)) for _ in range(3)]
        return [
            Column(
                *await count(pair.near, rounds),
                f"{median(alone[pair.near]):.1f}, {median(alone[pair.far]):.1f}",
                *(compare(speeds[pair.near], speeds[pair.far]) for speeds in (plain, watched)),
            )
            for pair in pairs
        ]


async def count(worker: Worker, rounds: int) -> tuple[str, str, str]:
    """Scripts for one image, heartbeats meanwhile, and scripts for sixteen images, as cells."""
    (image,), (images,) = some_jobs(1), some_jobs(1, previews=True, num_images=16)
    alone = [await worker.count_scripts(replace(image, id=f"one-{i}")) for i in range(rounds)]
    watched = [await worker.count_scripts(replace(images, id=f"many-{i}")) for i in range(rounds)]
    one, many = max(alone, key=num_asked), max(watched, key=num_asked)
    return describe(one), str(one.total() - num_asked(one)), describe(many)


def describe(scripts: Counter[str]) -> str:
    """Their number, and what they were."""
    kinds = [f"{n} {name}" for name, n in sorted(scripts.items()) if name not in HEARTBEAT]
    return f"{num_asked(scripts)} ({', '.join(kinds)})"


def num_asked(scripts: Counter[str]) -> int:
    """Scripts that are no heartbeats."""
    return sum(n for name, n in scripts.items() if name not in HEARTBEAT)


def compare(near: Sequence[float], far: Sequence[float]) -> str:
    """A cell of two speeds and their ratio, without the first round, which warms up."""
    ratio = statistics.median(b / a for a, b in zip(near[1:], far[1:], strict=True))
    return f"{median(near):.1f}, {median(far):.1f}, {ratio:.2f}"


def median(values: Sequence[float]) -> float:
    """The median without the first value, which warms up."""
    return statistics.median(values[1:])


def some_jobs(num: int, *, previews: bool = False, num_images: int = 1) -> list[Job]:
    """Jobs of unguided images, each with a seed of its own."""
    requests = [
        GenerationRequest(MODEL, i % NUM_CLASSES, 1.0, seed=i, num_images=num_images)
        for i in range(num)
    ]
    return [Job(request, previews=previews) for request in requests]


if __name__ == "__main__":
    main()
