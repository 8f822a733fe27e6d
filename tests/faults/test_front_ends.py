"""Front ends are lost and replaced while work is under way."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from tests.faults.bodies import Body, Oracle, some_requests
from tests.faults.client import Client, keep_asking
from tests.faults.cluster import SHIPPED, Cluster, FrontEnd
from tests.faults.jobs import files_of_job
from tests.stopwatch import Stopwatch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_results_are_fetched_from_another_front_end(shared: Cluster, shipped: Oracle) -> None:
    bodies = some_requests(12, seed=7, num_classes=10)
    (other,) = shared.front_ends

    async def run(lost: FrontEnd) -> list[list[bytes]]:
        async with httpx.AsyncClient(timeout=60) as http:
            answers = [await http.post(f"{lost.url}/jobs", json=body) for body in bodies]
            lost.kill()
            places = [answer.headers["Location"] for answer in answers]
            return [await files_of_job(http, f"{other.url}{place}") for place in places]

    with shared.another_front_end() as lost:
        assert asyncio.run(run(lost)) == shipped.files(bodies)
    shared.assert_at_rest()


def unlucky_ends(cluster: Cluster) -> dict[str, float]:
    """How many jobs have ended without images."""
    ended = cluster.samples("masc_jobs_ended_total")
    return {state: number for state, number in ended.items() if state != "ok"}


async def until_not_ready(http: httpx.AsyncClient, url: str) -> None:
    """Wait until a front end says that it is not ready, or says nothing."""
    with suppress(httpx.TransportError):
        while (await http.get(f"{url}/readyz")).status_code != 503:
            pass


@contextmanager
def embedded(folder: Path) -> Iterator[FrontEnd]:
    """The service in one process, as a newcomer has it."""
    variables = {"MASC_MODELS_DIR": str(SHIPPED), "MASC_THREADS": "1"}
    process = FrontEnd(["masc", "serve", "--port", "0"], folder / "embedded.log", variables)
    try:
        process.find(" serves cifar10 ")
        yield process
    finally:
        process.kill()


async def leave_under_load(
    client: Client, leaving: FrontEnd, bodies: list[Body], files: list[list[bytes]]
) -> float:
    """Let a front end stop while there is work; seconds until it said that it is not ready."""
    async with httpx.AsyncClient(timeout=30) as http:
        asking = asyncio.create_task(keep_asking(client, bodies, files))
        await asyncio.sleep(1.0)
        assert not asking.done()
        with Stopwatch() as watch:
            leaving.send(signal.SIGTERM)
            await until_not_ready(http, leaving.url)
        assert await asyncio.to_thread(leaving.wait, 30) == 0
        client.is_stopping = True
        await asking
    return watch.seconds


def test_a_front_end_stops_under_load(shared: Cluster, shipped: Oracle) -> None:
    bodies = some_requests(16, seed=8, num_classes=10)
    files, before = shipped.files(bodies), unlucky_ends(shared)

    async def run(leaving: FrontEnd) -> None:
        async with Client([leaving.url, shared.front_ends[0].url]) as client:
            assert await leave_under_load(client, leaving, bodies, files) <= 0.1
            assert client.tally.failed == []

    with shared.another_front_end() as leaving:
        asyncio.run(run(leaving))
    shared.assert_at_rest()
    assert unlucky_ends(shared) == before


def test_the_whole_service_in_one_process_stops_under_load(logs: Path, shipped: Oracle) -> None:
    bodies = some_requests(16, seed=9, num_classes=10)
    files = shipped.files(bodies)

    async def run(process: FrontEnd) -> None:
        async with Client([process.url]) as client:
            assert await leave_under_load(client, process, bodies, files) <= 0.1
            assert client.tally.failed == []

    with embedded(logs) as process:
        asyncio.run(run(process))
        assert "running task(s)" not in process.log.read_text()  # uvicorn's, of those it cuts off


def test_a_worker_stops_under_load(shared: Cluster, shipped: Oracle) -> None:
    bodies = some_requests(16, seed=10, num_classes=10)
    files, before = shipped.files(bodies), unlucky_ends(shared)

    async def run() -> None:
        async with Client([shared.front_ends[0].url]) as client:
            asking = asyncio.create_task(keep_asking(client, bodies, files))
            await asyncio.sleep(1.0)
            leaving = shared.workers.pop()
            async with httpx.AsyncClient(timeout=10) as http:
                url = f"{shared.front_ends[0].url}/readyz"
                with Stopwatch() as watch:
                    leaving.send(signal.SIGTERM)
                    while len((await http.get(url)).json()["workers"]) == 2:
                        pass
            assert await asyncio.to_thread(leaving.wait, 30) == 0
            client.is_stopping = True
            await asking
            assert client.tally.failed == []
            assert watch.seconds <= 0.1

    asyncio.run(run())
    shared.assert_at_rest()
    assert unlucky_ends(shared) == before
    assert not shared.samples("masc_jobs_redelivered_total")["lease_expired"]
