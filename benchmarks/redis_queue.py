"""Time the queue in Redis: single calls, jobs on their way there and back, and what they take.

::

    python benchmarks/redis_queue.py                       # with an append-only file, as advised
    python benchmarks/redis_queue.py --appendonly no

A Redis of its own, this process as the front end, and a worker that answers at once share the
processors of this machine. Processor time is that of each process for one job: submitted, awaited,
claimed, finished and forgotten. Memory is that of Redis for one job that waits, that runs, and that
is remembered after its outcome has gone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # before packages that install tests, too

from tests.redis_server import RedisServer  # noqa: E402 - not installed
from worker.jobs.job import GenerationRequest, Job, Progress  # noqa: E402
from worker.jobs.outcome import ImageOutput, JobFailure, JobResult, Timings  # noqa: E402
from worker.jobs.queue import QueueLimits  # noqa: E402
from worker.jobs.redis.queue import RedisQueue  # noqa: E402

LIMITS = QueueLimits(max_jobs=10_000)
MODEL = "instant"
AT_ONCE = 64
NUM_CALLS = 1000
NUM_JOBS = 5000


def main() -> None:
    """Print the tables, or be the worker of a measurement."""
    parser = argparse.ArgumentParser(description="time the queue in Redis")
    parser.add_argument("--appendonly", choices=("yes", "no"), default="yes")
    parser.add_argument("--kib", type=int, default=30, help="of the image that a job makes")
    parser.add_argument("--work", metavar="URL", help="be the worker of a queue")
    options = parser.parse_args()
    if options.work:
        work(options.work, options.kib)
        return
    with RedisServer(appendonly=options.appendonly, appendfsync="everysec") as server:
        asyncio.run(time_calls(server.url, options.kib))
    print("\n| clients | jobs/s | p50 ms | p99 ms | front end µs | worker µs | Redis µs |")
    print("|---|---|---|---|---|---|---|")
    for clients in (1, 10, 50, 200):
        with RedisServer(appendonly=options.appendonly, appendfsync="everysec") as server:
            print(time_jobs(server, clients, options.kib), flush=True)
    with RedisServer() as server:
        print(asyncio.run(weigh_jobs(server)))


def result(kib: int) -> JobResult:
    """An image of that size."""
    image = ImageOutput(os.urandom(kib * 1024), 7, (7.0,) * 256, 7.0, 0.7)
    return JobResult((image,), MODEL, "v1", "0" * 64, Timings())


def job() -> Job:
    """A job of one image."""
    return Job(GenerationRequest(MODEL, 3, 1.0, seed=7))


async def time_calls(url: str, kib: int) -> None:
    """Print how long single calls take, one after another."""
    outcome = result(kib)
    seconds: dict[str, list[float]] = {}

    async def timed(name: str, call: Callable[[], Awaitable[object]]) -> None:
        started = time.perf_counter()
        await call()
        seconds.setdefault(name, []).append(time.perf_counter() - started)

    def timed_here(name: str, call: Callable[[], object]) -> None:
        started = time.perf_counter()
        call()
        seconds.setdefault(name, []).append(time.perf_counter() - started)

    async with RedisQueue(url, LIMITS) as queue:
        for _ in range(NUM_CALLS):
            sent = job()
            await timed("submit", lambda: queue.submit(sent))  # noqa: B023 - called at once
            await timed("status", lambda: queue.status(sent.id))  # noqa: B023
            started = time.perf_counter()
            (lease,) = queue.claim(MODEL, AT_ONCE, 0.0)
            seconds.setdefault("claim", []).append(time.perf_counter() - started)
            timed_here("renew", lambda: queue.renew([lease]))  # noqa: B023
            events = [(lease, Progress(0, 1, 16))] * 16
            timed_here("report, 1 event", lambda: queue.report(events[:1]))  # noqa: B023
            timed_here("report, 16 events", lambda: queue.report(events))  # noqa: B023
            timed_here(f"report, {kib} KiB", lambda: queue.report([(lease, outcome)]))  # noqa: B023
            await timed(f"outcome, {kib} KiB", lambda: queue.outcome(sent.id))  # noqa: B023
            await timed("forget", lambda: queue.forget(sent.id))  # noqa: B023
            await timed("stats", queue.stats)
    print("| call | p50 µs | p99 µs |\n|---|---|---|")
    for name, times in seconds.items():
        p99 = statistics.quantiles(times, n=100)[98]
        print(f"| {name} | {1e6 * statistics.median(times):.0f} | {1e6 * p99:.0f} |", flush=True)


def time_jobs(server: RedisServer, clients: int, kib: int) -> str:
    """A row of the table."""
    command = [sys.executable, str(Path(__file__)), "--work", server.url, "--kib", str(kib)]
    worker = subprocess.Popen(command)  # noqa: S603 - this program
    try:
        return asyncio.run(ask_together(server, clients, worker.pid))
    finally:
        worker.kill()
        worker.wait()


async def ask_together(server: RedisServer, clients: int, worker: int) -> str:
    """Let every client ask again as soon as it has its answer."""
    times: list[float] = []

    async def ask(queue: RedisQueue, count: int) -> None:
        for _ in range(count):
            started = time.perf_counter()
            sent = job()
            await queue.submit(sent)
            await queue.outcome(sent.id)
            times.append(time.perf_counter() - started)
            await queue.forget(sent.id)

    async with RedisQueue(server.url, LIMITS) as queue:
        await ask(queue, 20)  # until all are awake
        times.clear()
        before = processor_seconds(server, worker)
        started = time.perf_counter()
        await asyncio.gather(*(ask(queue, NUM_JOBS // clients) for _ in range(clients)))
        seconds = time.perf_counter() - started
        after = processor_seconds(server, worker)
    p99 = statistics.quantiles(times, n=100)[98]
    cells = [f"{clients}", f"{len(times) / seconds:.0f}", f"{1e3 * statistics.median(times):.2f}"]
    spent = [(b - a) / len(times) for a, b in zip(before, after, strict=True)]
    return (
        "| " + " | ".join([*cells, f"{1e3 * p99:.2f}", *(f"{1e6 * s:.0f}" for s in spent)]) + " |"
    )


async def weigh_jobs(server: RedisServer) -> str:
    """A table of what a job takes in Redis."""
    brief = QueueLimits(max_jobs=NUM_JOBS, result_seconds=0.001)
    weighed: list[float] = []
    with server.client() as client:

        def weigh() -> float:
            return float(client.info("memory")["used_memory"])

        async with RedisQueue(server.url, brief) as queue:
            await queue.stats()
            empty = weigh()
            jobs = [replace(job(), keep=True) for _ in range(NUM_JOBS)]
            for one in jobs:
                await queue.submit(one)
            weighed.append(weigh() - empty)
            leases = queue.claim(MODEL, NUM_JOBS, 0.0)
            weighed.append(weigh() - empty)
            for lease in leases:
                queue.report([(lease, JobFailure("EngineError", ""))])
            await asyncio.sleep(
                0.1
            )  # then their outcomes have gone, and go when they are looked for
            assert not list(client.scan_iter("{masc}:outcome:*", NUM_JOBS))  # noqa: S101
            weighed.append(weigh() - empty)
    cells = [f"{bytes_ / NUM_JOBS / 1000:.2f}" for bytes_ in weighed]
    head = "\n| KB a job that waits | that runs | that is remembered |\n|---|---|---|\n| "
    return head + " | ".join(cells) + " |"


def processor_seconds(server: RedisServer, worker: int) -> tuple[float, float, float]:
    """What the front end, the worker and Redis have used so far."""
    fields = Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()
    ticks = int(fields[11]) + int(fields[12])
    with server.client() as client:
        used = client.info("cpu")
    redis_seconds = float(used["used_cpu_user"]) + float(used["used_cpu_sys"])
    return time.process_time(), ticks / os.sysconf("SC_CLK_TCK"), redis_seconds


def work(url: str, kib: int) -> None:
    """Answer every job at once, until killed."""
    outcome = result(kib)
    with closing(RedisQueue(url, LIMITS)) as queue:
        while True:
            for lease in queue.claim(MODEL, AT_ONCE, 0.2):
                queue.report([(lease, outcome)])


if __name__ == "__main__":
    main()
