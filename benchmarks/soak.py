"""Load a whole service for a while, and look whether it grows.

::

    python benchmarks/soak.py                               # 20 minutes at 70 % of what it can do
    python benchmarks/soak.py --minutes 2 --swap-seconds 20

A Redis, a front end and a worker with the shipped model are processes of this machine. First a
closed loop tells how many requests a second they can do; then requests arrive at random times, at a
share of that rate: images, images that are given up meanwhile, streams that are read or broken off,
and jobs that are fetched, cancelled or forgotten. Once a minute another version of the model is
activated. Every few seconds it is noted how much memory, how many descriptors and how many threads
front end and worker have, and how much memory Redis uses, which keeps results for ten minutes.

The second half is flat where the median of its last third is at most `GROWTH` and `SLACK` above
that of its first third. Ends with status 1 where something is not flat, or an answer is neither
what was asked for nor an orderly refusal.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from masc_core.bundle.manifest import read_manifest, write_manifest
from server.auth.api_keys import hash_key, new_key
from server.bench.client import FAILURES, open_session

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # before packages that install tests, too

from tests.faults.cluster import SHIPPED, Cluster, Process  # noqa: E402 - not installed
from tests.redis_server import RedisServer  # noqa: E402

MODEL = "cifar10"
VERSIONS = ("1", "2")  # the same weights, so that it is the change that could leave something
NUM_CLASSES = 10
CAPACITY_SECONDS, CAPACITY_CLIENTS = 20.0, 32
PATIENCE = 60.0  # seconds for any one answer
GROWTH = 1.03
SLACK: Mapping[str, float] = {"MiB": 3.0, "descriptors": 6.0, "threads": 2.0}
REFUSALS = (429, 503, 504)
rng = np.random.default_rng(0)  # of arrivals, of what is asked for, of when clients leave

Figures = dict[tuple[str, str], list[float]]  # by process and what is counted, in order of time


def main() -> None:
    """Print what came of it."""
    parser = argparse.ArgumentParser(description="look whether a loaded service grows")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--share", type=float, default=0.7, help="of what the service can do")
    parser.add_argument("--swap-seconds", type=float, default=60.0, help="between two versions")
    parser.add_argument("--sample-seconds", type=float, default=5.0)
    parser.add_argument("--out", type=Path, help="folder for soak-cpu.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, RedisServer() as redis:
        folder, admin_key = Path(name), new_key()
        for version in VERSIONS:
            copy_version(folder / "models" / MODEL, version)
        (folder / "models" / MODEL / "current").write_text(f"{VERSIONS[0]}\n")
        keys = folder / "admin.toml"
        keys.write_text(f'[[keys]]\nname = "soak"\nsha256 = "{hash_key(admin_key)}"\n')
        with Cluster(folder, folder / "models", redis, admin_keys_file=keys) as cluster:
            cluster.start()
            report = asyncio.run(soak(cluster, admin_key, options))
    text = "\n".join(report.lines())
    print(text)
    if options.out is not None:
        (options.out / "soak-cpu.md").write_text(f"{text}\n")
    if report.faults():
        raise SystemExit(1)


def copy_version(model: Path, version: str) -> None:
    """Write the shipped version under another number."""
    folder = model / version
    shutil.copytree(SHIPPED / MODEL / "1", folder)
    write_manifest(folder, read_manifest(folder).model_copy(update={"version": version}))


class Report:
    """What was seen, and what is wrong with it."""

    def __init__(self, per_second: float, rate: float, minutes: float) -> None:
        self.per_second, self.rate, self.minutes = per_second, rate, minutes
        self.outcomes: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()
        self.num_swaps = 0
        self.figures: Figures = {}

    def faults(self) -> list[str]:
        """What is not flat, and unexpected answers."""
        found = [f"{what}: {number} times" for what, number in self.unexpected.items()]
        for (process, unit), values in self.figures.items():
            _, begin, end = halves(values)
            if end > begin * GROWTH + SLACK[unit]:
                found.append(f"{unit} of the {process} grow: {begin:.0f} to {end:.0f}")
        return found

    def lines(self) -> list[str]:
        """As Markdown."""
        python = platform.python_version()
        counts = ", ".join(f"{what} {number}" for what, number in sorted(self.outcomes.items()))
        conditions = (
            f"{os.cpu_count()} cores, {platform.machine()}, Python {python}. {self.minutes:g} "
            f"minutes at {self.rate:.1f} requests a second, of {self.per_second:.1f} that it can "
            f"do; {self.num_swaps} changes of version. Outcomes: {counts}."
        )
        lines = [
            "# A service under load for a while",
            "",
            conditions,
            "",
            "| process | what | first half | second half, begin | second half, end | most |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for (process, unit), values in self.figures.items():
            cells = [*halves(values), max(values)]
            lines.append(f"| {process} | {unit} | {' | '.join(f'{v:.0f}' for v in cells)} |")
        return [*lines, "", *(self.faults() or ["Flat, and every answer as expected."])]


def halves(values: Sequence[float]) -> list[float]:
    """Median of the first half, and of the first and the last third of the second."""
    half = max(1, len(values) // 2)
    first, second = values[:half], values[-half:]
    third = -(-half // 3)
    return [statistics.median(part) for part in (first, second[:third], second[-third:])]


async def soak(cluster: Cluster, admin_key: str, options: argparse.Namespace) -> Report:
    """Find out what the service can do, load it, and note how large it is meanwhile."""
    url = cluster.front_ends[0].url
    async with open_session(PATIENCE) as session:
        per_second = await capacity(session, url)
        report = Report(per_second, options.share * per_second, options.minutes)
        until = time.monotonic() + 60 * options.minutes
        beside = [
            asyncio.create_task(swap(session, url, admin_key, report, options.swap_seconds)),
            asyncio.create_task(observe(cluster, report, options.sample_seconds)),
        ]
        running: set[asyncio.Task[None]] = set()
        while time.monotonic() < until:
            request = KINDS[rng.choice(len(KINDS), p=SHARES)]
            body = {"class_id": int(rng.integers(NUM_CLASSES)), "seed": int(rng.integers(2**31))}
            task = asyncio.create_task(counted(report, request, session, url, body))
            running.add(task)
            task.add_done_callback(running.discard)
            await asyncio.sleep(rng.exponential(1 / report.rate))
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await asyncio.gather(*running)
    return report


async def capacity(session: aiohttp.ClientSession, url: str) -> float:
    """Requests a second of a closed loop."""
    until = time.monotonic() + CAPACITY_SECONDS
    made = 0

    async def client(number: int) -> None:
        nonlocal made
        while time.monotonic() < until:
            await image(session, url, {"class_id": number % NUM_CLASSES})
            made += 1

    await asyncio.gather(*(client(number) for number in range(CAPACITY_CLIENTS)))
    return made / CAPACITY_SECONDS


async def counted(
    report: Report,
    request: Callable[..., Awaitable[str]],
    session: aiohttp.ClientSession,
    url: str,
    body: dict[str, Any],
) -> None:
    """Send a request, and count what becomes of it."""
    try:
        report.outcomes[await request(session, url, body)] += 1
    except UnexpectedError as error:
        report.unexpected[str(error)] += 1
    except FAILURES as error:
        report.unexpected[f"{request.__name__}: {type(error).__name__}"] += 1


class UnexpectedError(Exception):
    """An answer that nobody should get."""


async def image(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> str:
    """One image, waited for."""
    headers = {"Accept": "image/png"}
    async with session.post(f"{url}/generate", json=body, headers=headers) as answer:
        content = await answer.read()
        if answer.status in REFUSALS:
            return "refused"
        if answer.status != 200 or not content.startswith(b"\x89PNG"):
            raise UnexpectedError(f"an image: {answer.status} {content[:80]!r}")
        return "image"


async def given_up(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> str:
    """One image, whose client goes away meanwhile."""
    try:
        async with asyncio.timeout(rng.uniform(0.01, 0.5)):
            return await image(session, url, body)
    except TimeoutError:
        return "image given up"


async def stream(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> str:
    """A stream, read to its end."""
    async with session.post(f"{url}/generate", json={**body, "stream": True}) as answer:
        content = await answer.read()
        if answer.status in REFUSALS:
            return "refused"
        if answer.status != 200 or b"event: done" not in content:
            raise UnexpectedError(f"a stream: {answer.status} {content[-80:]!r}")
        return "stream"


async def broken_stream(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> str:
    """A stream that is broken off after its first bytes."""
    async with session.post(f"{url}/generate", json={**body, "stream": True}) as answer:
        if answer.status in REFUSALS:
            return "refused"
        await answer.content.readany()
        answer.close()
        return "stream broken off"


async def job(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> str:
    """A job that is fetched, cancelled or forgotten."""
    async with session.post(f"{url}/jobs", json=body) as answer:
        if answer.status in REFUSALS:
            return "refused"
        if answer.status != 202:
            raise UnexpectedError(f"a job: {answer.status} {(await answer.text())[:80]}")
        path = answer.headers["Location"]
    fate = rng.random()
    if fate < 0.3:
        return "job forgotten"
    if fate < 0.5:
        async with session.delete(f"{url}{path}") as answer:
            return await expected(answer, 204, "job cancelled")
    async with session.get(f"{url}{path}/events") as answer:
        await answer.read()
    async with session.get(f"{url}{path}/images/0") as answer:
        return await expected(answer, 200, "job fetched")


async def expected(answer: aiohttp.ClientResponse, status: int, outcome: str) -> str:
    """The outcome, if the status is the expected one."""
    if answer.status != status:
        raise UnexpectedError(f"{outcome}: {answer.status} {(await answer.text())[:80]}")
    return outcome


KINDS = (image, given_up, stream, broken_stream, job)
SHARES = (0.4, 0.15, 0.15, 0.1, 0.2)


async def swap(
    session: aiohttp.ClientSession, url: str, key: str, report: Report, seconds: float
) -> None:
    """Activate the other version again and again."""
    while True:
        await asyncio.sleep(seconds)
        version = VERSIONS[(report.num_swaps + 1) % 2]
        async with session.post(
            f"{url}/admin/models/{MODEL}/activate",
            json={"version": version},
            headers={"X-API-Key": key},
        ) as answer:
            if answer.status not in {200, 202}:
                report.unexpected[f"activation: {answer.status}"] += 1
        report.num_swaps += 1


async def observe(cluster: Cluster, report: Report, seconds: float) -> None:
    """Note the sizes of the processes."""
    processes = {"front end": cluster.front_ends[0], "worker": cluster.workers[0]}
    with cluster.redis.client() as redis:
        while True:
            await asyncio.sleep(seconds)
            for name, process in processes.items():
                for unit, value in sizes(process).items():
                    report.figures.setdefault((name, unit), []).append(value)
            used = redis.info("memory")["used_memory"]
            report.figures.setdefault(("Redis", "MiB"), []).append(used / 2**20)


def sizes(process: Process) -> dict[str, float]:
    """Memory, descriptors and threads of a process."""
    folder = Path(f"/proc/{process.pid}")
    return {
        "MiB": process.resident_bytes / 2**20,
        "descriptors": len(list((folder / "fd").iterdir())),
        "threads": len(list((folder / "task").iterdir())),
    }


if __name__ == "__main__":
    main()
