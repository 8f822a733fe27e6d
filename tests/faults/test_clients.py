"""Clients that go away, and clients that ask for the same thing many times."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.faults.bodies import Body, Oracle, files_of, some_requests
from tests.faults.client import Client
from tests.faults.cluster import Cluster
from tests.faults.test_workers import active_rows, until
from tests.redis_server import RedisServer
from tests.tiny_bundle import CLASS_NAMES, save_tiny_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def assert_no_rows(cluster: Cluster) -> None:
    """The workers' rows are free, as soon as they have made their next step."""
    asyncio.run(until(lambda: not any(map(active_rows, cluster.workers)), 5))


def test_half_of_two_thousand_requests_are_given_up(logs: Path, redis: RedisServer) -> None:
    models = logs.parent / "models"
    save_tiny_bundle(models)
    bodies = some_requests(2000, seed=11, num_classes=len(CLASS_NAMES))
    expected = Oracle.of(models / "tiny" / "1").files(bodies)
    rng = random.Random(0)

    async def run(cluster: Cluster) -> tuple[int, int]:
        places = asyncio.Semaphore(60)
        survived, given_up = 0, 0
        async with httpx.AsyncClient(
            base_url=cluster.front_ends[0].url, timeout=120, limits=httpx.Limits(max_connections=70)
        ) as http:

            async def ask(body: Body, files: list[bytes], patience: float | None) -> None:
                nonlocal survived, given_up
                async with places:
                    try:
                        async with asyncio.timeout(patience):
                            answer = await http.post("/generate", json=body)
                    except TimeoutError:
                        given_up += 1
                        return
                    assert answer.status_code == 200, answer.text
                    assert files_of(answer.json()) == files
                    survived += 1

            await asyncio.gather(
                *(
                    ask(body, files, rng.uniform(0, 0.5) if i % 2 else None)
                    for i, (body, files) in enumerate(zip(bodies, expected, strict=True))
                )
            )
        return survived, given_up

    with Cluster(logs, models, redis, max_queue=1000) as cluster:
        cluster.start()
        survived, given_up = asyncio.run(run(cluster))
        assert survived >= 1000
        assert survived + given_up == 2000
        assert given_up >= 100
        cluster.assert_at_rest()
        assert_no_rows(cluster)
        ended = cluster.samples("masc_jobs_ended_total")
        assert ended["error"] == ended["expired"] == 0


def test_fifty_submissions_with_one_key_are_one_execution(shared: Cluster, shipped: Oracle) -> None:
    (body,) = some_requests(1, seed=12, num_classes=10)
    accepted = shared.samples("masc_jobs_accepted_total")[""]

    async def run(urls: list[str]) -> None:
        async with Client(urls, at_once=50) as client:
            headers = {"Idempotency-Key": "the-same"}
            answers = await asyncio.gather(*(client.generate(body, **headers) for _ in range(50)))
            assert all(answer == answers[0] for answer in answers)
            assert [files_of(answers[0])] == shipped.files([body])
            url = f"{urls[0]}/generate"
            other = await client.http.post(url, json=body | {"seed": 1}, headers=headers)
            assert other.status_code == 409

    with shared.another_front_end() as other:
        asyncio.run(run([shared.front_ends[0].url, other.url]))
    shared.assert_at_rest()
    assert shared.samples("masc_jobs_accepted_total")[""] == accepted + 1


def test_streams_that_are_cut_off_free_the_rows(shared: Cluster) -> None:
    (body,) = some_requests(1, seed=13, num_classes=10)
    body |= {"num_images": 16, "stream": True}

    cancelled = shared.samples("masc_jobs_ended_total")["cancelled"]

    async def run() -> None:
        async with httpx.AsyncClient(base_url=shared.front_ends[0].url, timeout=60) as http:
            for _ in range(5):
                async with http.stream("POST", "/generate", json=body) as answer:
                    assert answer.status_code == 200
                    async for line in answer.aiter_lines():
                        if line.startswith("event: progress"):
                            break

    with suppress(httpx.ReadError):
        asyncio.run(run())
    shared.assert_at_rest()
    assert shared.samples("masc_jobs_ended_total")["cancelled"] == cancelled + 5
    assert_no_rows(shared)
