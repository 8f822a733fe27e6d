"""Redis goes and comes back; no accepted job is lost, and nobody is kept waiting for a no."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.faults.bodies import Oracle, some_requests
from tests.faults.client import Client
from tests.faults.cluster import SHIPPED, Cluster
from tests.faults.jobs import files_of_job
from tests.redis_server import RedisServer
from tests.stopwatch import Stopwatch
from worker.jobs.redis.producer import RESULT_CALL_TIMEOUT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

AWAY_SECONDS = RESULT_CALL_TIMEOUT + 2.0  # longer than any call waits, and six leases


async def probe(url: str, until: float) -> list[tuple[int, float, str]]:
    """Ask for images while Redis is away: status, seconds until it came, and when to come back."""
    answers = []
    async with httpx.AsyncClient(timeout=20) as http:
        while time.monotonic() < until:
            with Stopwatch() as watch:
                answer = await http.post(f"{url}/generate", json={"class_id": 1})
            again = answer.headers.get("Retry-After", "")
            answers.append((answer.status_code, watch.seconds, again))
            assert (await http.get(f"{url}/healthz")).status_code == 200
            assert (await http.get(f"{url}/readyz")).status_code == 503
            await asyncio.sleep(0.5)
    return answers


@pytest.mark.parametrize(
    ("leave", "come_back"),
    [(RedisServer.hang, RedisServer.go_on), (RedisServer.kill, RedisServer.start)],
    ids=["hung", "killed"],
)
def test_redis_is_away_for_longer_than_any_call_waits(
    leave: Callable[[RedisServer], None],
    come_back: Callable[[RedisServer], None],
    logs: Path,
    redis: RedisServer,
    shipped: Oracle,
) -> None:
    bodies = some_requests(24, seed=6, num_classes=10, max_images=4)

    async def run(cluster: Cluster) -> None:
        url = cluster.front_ends[0].url
        async with Client([url]) as client, httpx.AsyncClient(timeout=10) as http:
            # Accepted before, as requests that wait and as jobs that nobody waits for.
            waiting = asyncio.create_task(client.files(bodies[:12]))
            jobs = [await http.post(f"{url}/jobs", json=body) for body in bodies[12:]]
            assert {job.status_code for job in jobs} == {202}
            async with asyncio.timeout(60):
                while not any(task.done() for task in (waiting,)):
                    if cluster.samples("masc_jobs_accepted_total")[""] == len(bodies):
                        break
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(leave, redis)
            left = time.monotonic()
            answers = await probe(url, left + AWAY_SECONDS)
            assert {status for status, _, _ in answers} == {503}
            assert max(seconds for _, seconds, _ in answers) <= 1.0
            assert all(int(again) >= 1 for _, _, again in answers)
            back = time.monotonic()
            await asyncio.to_thread(come_back, redis)
            while (await http.get(f"{url}/readyz")).status_code != 200:
                assert time.monotonic() - back < 5.0
                await asyncio.sleep(0.02)
            made = await waiting
            made += [await files_of_job(http, f"{url}{job.headers['Location']}") for job in jobs]
            assert made == shipped.files(bodies)
            assert client.tally.rejected == 0

    # With a limit, which is asked for first, so that both have to be given up within the second.
    options = {"lease_seconds": 2.0, "max_batch": 4, "rate_limit": 100_000}
    with Cluster(logs, SHIPPED, redis, **options) as cluster:
        cluster.start(workers=2)
        asyncio.run(run(cluster))
        cluster.assert_at_rest()
        ended = cluster.samples("masc_jobs_ended_total")
        assert ended["ok"] == len(bodies)
        assert ended["error"] == ended["expired"] == 0
