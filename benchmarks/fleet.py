"""How far one Redis goes: instant workers and front ends, as many as a fleet has.

::

    python benchmarks/fleet.py
    git worktree add ../before v1.0
    python benchmarks/fleet.py --before ../before --out benchmarks/results

A Redis of its own, the workers as coroutines of a second process and the front ends as coroutines
of this one share the processors of this machine. A worker sends the scripts that `RedisConsumer`
sends, over connections of its own, and answers at once. Each number of workers is measured

idle : nothing arrives; what polls and heartbeats cost
sparse : one job after another arrives at an empty line
full : as many clients ask as keep the line from being empty, each again once it has its image
waiting : all workers are busy, 5,000 jobs wait, and 100 more a second are admitted
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, cast

import hiredis

ROOT = Path(__file__).resolve().parent.parent
CHECKOUT = Path(os.environ.get("FLEET_CHECKOUT", ROOT))  # whose scripts and classes are measured
sys.path.insert(0, str(CHECKOUT))  # before packages that install tests, too

from masc_core.errors import QueueDownError  # noqa: E402
from tests.redis_server import RedisServer  # noqa: E402 - not installed
from worker.heartbeat import MAX_PAUSE_SECONDS  # noqa: E402
from worker.jobs.job import GenerationRequest, Job  # noqa: E402
from worker.jobs.outcome import ImageOutput, JobResult, Timings  # noqa: E402
from worker.jobs.queue import QueueLimits, WorkerStatus  # noqa: E402
from worker.jobs.redis import consumer  # noqa: E402
from worker.jobs.redis.client import QueueNamespace, load_script  # noqa: E402
from worker.jobs.redis.codec import encode_with_kind, encode_worker  # noqa: E402
from worker.jobs.redis.queue import RedisQueue  # noqa: E402

LIMITS = QueueLimits(max_jobs=20_000, lease_seconds=30.0)
MODEL = "instant"
IMAGE_KIB = 30
MAX_EVENTS = 1000
NUM_WAITING, ADMITTED_PER_SECOND = 5000, 100
NUM_FRONT_ENDS = 4
CLIENTS = 64
SPARSE_SECONDS = 0.02  # between two images
SETTLE_SECONDS = 1.5
START_SECONDS = 120.0
WORKERS = (1, 10, 100, 1000)
LOADS = ("idle", "sparse", "full", "waiting")
# How long a worker of this checkout waits for news; None where all workers hear of any arrival.
POLL_SECONDS = getattr(consumer, "poll_seconds", None)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one number of workers in one situation; times in milliseconds."""

    version: str
    load: str
    workers: int
    images_per_second: float
    p50_ms: float  # of an image, or of an admission
    p99_ms: float
    scripts_per_second: float
    scripts_per_image: float | None  # without heartbeats and polls, which come by the second
    claims_per_image: float | None  # without polls
    redis_share: float  # of one processor
    script_us: float  # of Redis' processor time, whatever it was for
    kb_per_job: float = 0.0  # that waits


COLUMNS = (
    *("load", "workers", "code", "images/s", "p50 ms", "p99 ms", "scripts/s"),
    *("scripts/image", "claims/image", "Redis, % of a core", "Redis µs/script"),
)
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def main() -> None:
    """Print the table, or be the workers."""
    parser = argparse.ArgumentParser(description="measure a fleet over one Redis")
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--loads", nargs="+", default=LOADS, choices=LOADS)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--before", type=Path, help="another checkout, measured as well")
    parser.add_argument("--out", type=Path, help="folder for fleet-cpu.json and fleet-cpu.md")
    parser.add_argument("--rows", metavar="CODE", help="print rows of one checkout, as JSON")
    parser.add_argument("--be", nargs=3, metavar="ARG", help="be workers: PORT NUM MODE")
    options = parser.parse_args()
    if options.be:
        port, num_workers, mode = options.be
        asyncio.run(be_workers(int(port), int(num_workers), holds=mode == "hold"))
        return
    if options.rows:
        for load in options.loads:
            for num in options.workers:
                row = asyncio.run(measure(options.rows, load, num, options.seconds))
                print(json.dumps(asdict(row)), flush=True)
        return
    rows = rows_of("now", ROOT, options)
    if options.before:
        rows += rows_of("before", options.before.resolve(), options)
    rows.sort(key=lambda row: (LOADS.index(row.load), row.workers, row.version))
    table = "\n".join([HEAD, *map(line, rows)])
    print(table)
    if options.out:
        machine = (
            f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
        )
        found = {"machine": machine, "rows": [asdict(row) for row in rows]}
        (options.out / "fleet-cpu.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.out / "fleet-cpu.md").write_text(f"{machine}\n\n{table}\n")


def rows_of(code: str, checkout: Path, options: argparse.Namespace) -> list[Figures]:
    """What this program measures of a checkout."""
    command = [sys.executable, str(Path(__file__)), "--rows", code, "--loads", *options.loads]
    command += ["--seconds", str(options.seconds), "--workers", *map(str, options.workers)]
    done = subprocess.run(  # noqa: S603 - this program
        command, env=environment(checkout), stdout=subprocess.PIPE, text=True, check=True
    )
    return [Figures(**json.loads(row)) for row in done.stdout.splitlines()]


def environment(checkout: Path) -> dict[str, str]:
    """For a process that runs this program with the packages of a checkout."""
    return os.environ | {"FLEET_CHECKOUT": str(checkout)}


def line(row: Figures) -> str:
    """A row of the table."""
    cells = [row.load, row.workers, row.version, f"{row.images_per_second:.0f}"]
    cells += [f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}", f"{row.scripts_per_second:.0f}"]
    for per_image in (row.scripts_per_image, row.claims_per_image):
        cells.append("" if per_image is None else f"{per_image:.1f}")
    cells += [f"{100 * row.redis_share:.0f}", f"{row.script_us:.0f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


async def measure(version: str, load: str, num_workers: int, seconds: float) -> Figures:
    """Figures of a Redis, workers and front ends that are started for them alone."""
    with RedisServer(appendonly="yes", appendfsync="everysec", maxclients="20000") as server:
        async with AsyncExitStack() as stack:
            queues = [RedisQueue(server.url, LIMITS) for _ in range(NUM_FRONT_ENDS)]
            for queue in queues:
                await stack.enter_async_context(queue)
            with server.client() as client:
                for name in ("announce", "claim", "renew", "report"):
                    client.script_load(load_script(name).text)
            kb = await fill(server, queues, num_workers) if load == "waiting" else 0.0
            mode = "hold" if load == "waiting" else "serve"
            fleet = await stack.enter_async_context(Fleet(server.port, num_workers, mode))
            await settle(queues[0], num_workers, holding=load == "waiting")
            await fleet.counts()
            before, started, counted = usage(server), time.perf_counter(), Counter[str]()
            times = await SITUATIONS[load](queues, seconds)
            took, after = time.perf_counter() - started, usage(server)
            counted.update(await fleet.counts())
    scripts, processor = (b - a for a, b in zip(before, after, strict=True))
    beats = counted["announce"] + counted["renew"] + counted["poll"]
    num = len(times)
    cuts = statistics.quantiles(times, n=100) if len(times) > 1 else [0.0] * 99
    return Figures(
        version,
        load,
        num_workers,
        len(times) / took,
        1e3 * cuts[49],
        1e3 * cuts[98],
        scripts / took,
        (scripts - beats) / num if num else None,
        (counted["claim"] - counted["poll"]) / num if num else None,
        processor / took,
        1e6 * processor / max(1.0, scripts),
        kb,
    )


def usage(server: RedisServer) -> tuple[float, float]:
    """Scripts so far, and seconds of processor time of Redis."""
    with server.client() as client:
        stats, used = client.info("commandstats").get("cmdstat_evalsha"), client.info("cpu")
    seconds = float(used["used_cpu_user"]) + float(used["used_cpu_sys"])
    return float(stats["calls"]) if stats else 0.0, seconds


def job() -> Job:
    """A job of one image."""
    return Job(GenerationRequest(MODEL, 3, 1.0, seed=7))


async def fill(server: RedisServer, queues: list[RedisQueue], num_workers: int) -> float:
    """Submit the jobs that run and wait; returns the kilobytes that one takes."""
    with server.client() as client:
        empty = float(client.info("memory")["used_memory"])
        num = num_workers + NUM_WAITING
        for first in range(0, num, 64):
            await asyncio.gather(
                *(queues[0].submit(job()) for _ in range(first, min(first + 64, num)))
            )
        return (float(client.info("memory")["used_memory"]) - empty) / num / 1000


async def settle(queue: RedisQueue, num_workers: int, *, holding: bool) -> None:
    """Wait until all workers have announced themselves and have what they are to have."""
    until = time.monotonic() + START_SECONDS
    num_ready = num_running = 0
    while num_ready < num_workers or (holding and num_running < num_workers):
        if time.monotonic() > until:
            raise SystemExit(f"{num_ready} of {num_workers} workers are there")
        await asyncio.sleep(1.0)
        with suppress(QueueDownError):  # slow to answer, while all of them start
            num_ready = len(await queue.workers())
            num_running = (await queue.stats()).running
    await asyncio.sleep(SETTLE_SECONDS)


async def idle(_: list[RedisQueue], seconds: float) -> list[float]:
    """Do nothing."""
    await asyncio.sleep(seconds)
    return []


async def sparse(queues: list[RedisQueue], seconds: float) -> list[float]:
    """Ask for one image after another."""
    times: list[float] = []
    await ask(queues[0], time.perf_counter() + seconds, times, pause=SPARSE_SECONDS)
    return times


async def full(queues: list[RedisQueue], seconds: float) -> list[float]:
    """Ask for many at once."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    asking = (ask(queues[i % len(queues)], until, times) for i in range(CLIENTS))
    await asyncio.gather(*asking)
    return times


async def ask(queue: RedisQueue, until: float, times: list[float], pause: float = 0.0) -> None:
    """Be a client that asks again once it has its image."""
    while (started := time.perf_counter()) < until:
        sent = job()
        with suppress(QueueDownError):  # where it takes long to answer
            await queue.submit(sent)
            await queue.outcome(sent.id)
            times.append(time.perf_counter() - started)
            await queue.forget(sent.id)
        if pause:
            await asyncio.sleep(pause)


async def waiting(queues: list[RedisQueue], seconds: float) -> list[float]:
    """Admit jobs at a steady rate, as a route does: look for a ready worker, and submit."""
    times: list[float] = []

    async def admit(queue: RedisQueue, due: float) -> None:
        with suppress(QueueDownError):  # which takes as long as it takes
            ready = [one for one in await queue.workers() if one.ready and one.model == MODEL]
            if not ready:
                raise SystemExit("no worker is ready")
            await queue.submit(job())
        times.append(time.perf_counter() - due)

    async with asyncio.TaskGroup() as tasks:
        began = time.perf_counter()
        for i in range(int(seconds * ADMITTED_PER_SECOND)):
            due = began + i / ADMITTED_PER_SECOND
            await asyncio.sleep(due - time.perf_counter())
            tasks.create_task(admit(queues[i % len(queues)], due))
    return times


SITUATIONS = {"idle": idle, "sparse": sparse, "full": full, "waiting": waiting}


class Fleet:
    """The process of the workers."""

    def __init__(self, port: int, num_workers: int, mode: str) -> None:
        self._arguments = (__file__, "--be", str(port), str(num_workers), mode)

    async def __aenter__(self) -> Self:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *self._arguments, stdin=pipe, stdout=pipe, env=environment(CHECKOUT)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        await self._process.wait()

    async def counts(self) -> dict[str, int]:
        """Scripts that the workers have sent since this was asked last."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("no pipes")
        self._process.stdin.write(b"\n")
        found: dict[str, int] = json.loads(await self._process.stdout.readline())
        return found


async def be_workers(port: int, num_workers: int, *, holds: bool) -> None:
    """Run workers; print how often they called each script whenever a line comes in."""
    counts = Counter[str]()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # two connections for each
    loop, lines = asyncio.get_running_loop(), asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with asyncio.TaskGroup() as tasks:
        for number in range(num_workers):
            tasks.create_task(InstantWorker(port, f"w{number}", counts, holds=holds).run())
            if number % 20 == 19:
                await asyncio.sleep(0.02)  # else more connect at once than the system takes
        while await lines.readline():
            print(json.dumps(counts), flush=True)
            counts.clear()


class Connection(asyncio.Protocol):
    """One to Redis, leaner than the client library's: answers come in order, all else is news."""

    def __init__(self, on_news: Callable[[], None]) -> None:
        self._on_news, self._reader = on_news, hiredis.Reader()
        self._calls: deque[asyncio.Future[Any]] = deque()

    @classmethod
    async def to(cls, port: int, on_news: Callable[[], None] = lambda: None) -> Self:
        """Connect to a port of this machine."""
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(lambda: cls(on_news), "127.0.0.1", port))[1]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over where bytes are written."""
        self._write = cast("asyncio.Transport", transport).write

    def data_received(self, data: bytes) -> None:
        """Hand out what has come."""
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            if self._calls:
                self._calls.popleft().set_result(answer)
            else:
                self._on_news()

    def send(self, *args: str | int | bytes) -> None:
        """Send a command whose answer is news."""
        self._write(hiredis.pack_command(cast("Any", args)))

    async def call(self, *args: str | int | bytes) -> Any:  # noqa: ANN401 - as Redis answers
        """Send a command and wait for its answer."""
        self._calls.append(asyncio.get_running_loop().create_future())
        future = self._calls[-1]
        self.send(*args)
        answer = await future
        if isinstance(answer, Exception):
            raise answer
        return answer


class InstantWorker:
    """Claims, reports, announces and renews as a worker does, over two connections.

    With ``holds`` it keeps the first job that it gets, and has no room for more.
    """

    def __init__(self, port: int, name: str, counts: Counter[str], *, holds: bool) -> None:
        self._port, self._name, self._holds, self._counts = port, name, holds, counts
        self._namespace, self._arrived = QueueNamespace.of(LIMITS, 0), asyncio.Event()
        self._leases: list[str | int] = []
        self._num_workers = 1

    async def run(self) -> None:
        """Serve until cancelled."""
        self._calls = await Connection.to(self._port)
        news = await Connection.to(self._port, self._arrived.set)
        channels = (f"worker:{self._name}",) + (() if POLL_SECONDS else ("arrivals",))
        news.send("SUBSCRIBE", *(self._namespace.channels + channel for channel in channels))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._beat())
            tasks.create_task(self._serve())

    async def _serve(self) -> None:
        while not (self._holds and self._leases):
            self._arrived.clear()
            claimed = await self._call("claim", MODEL, 1, self._name, "", 0)
            self._leases = [part for lease in claimed for part in (lease[0].decode(), lease[1])]
            if claimed and not self._holds:
                await self._call("report", MAX_EVENTS, *self._leases, "ok", OUTCOME, 0)
                self._leases = []
            elif not claimed:
                pause = POLL_SECONDS(self._num_workers) if POLL_SECONDS else 1.0
                try:
                    await asyncio.wait_for(self._arrived.wait(), pause)
                except TimeoutError:
                    self._counts["poll"] += 1  # the next claim

    async def _beat(self) -> None:
        status = encode_worker(WorkerStatus(self._name, ready=True, model=MODEL, version="v1"))
        await asyncio.sleep(random.uniform(0, MAX_PAUSE_SECONDS))  # noqa: S311 - not all at once
        while True:
            if self._leases:
                await self._call("renew", *self._leases)
            self._num_workers = await self._call("announce", self._name, status, self._name) or 1
            await asyncio.sleep(MAX_PAUSE_SECONDS)

    async def _call(self, name: str, *args: str | int | bytes) -> Any:  # noqa: ANN401 - as scripts return
        self._counts[name] += 1
        sha = load_script(name).sha
        return await self._calls.call(
            "EVALSHA", sha, 1, self._namespace.keys, self._namespace.settings, *args
        )


def _outcome() -> bytes:
    image = ImageOutput(os.urandom(1024 * IMAGE_KIB), 7, (7.0,) * 256, 7.0, 0.7)
    return encode_with_kind(JobResult((image,), MODEL, "v1", "0" * 64, Timings()))


OUTCOME = _outcome()

if __name__ == "__main__":
    main()
