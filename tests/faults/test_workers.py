"""Workers are lost, stopped and poisoned; what was accepted is done, once."""

from __future__ import annotations

import asyncio
import platform
import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.faults.bodies import Oracle, files_of, some_requests
from tests.faults.client import Client
from tests.faults.cluster import SHIPPED, Cluster, Process
from tests.faults.unlucky_worker import POISON
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

LEASE = 2.0
KILLS = 20


def active_rows(worker: Process) -> float:
    """Rows that a worker's engine runs; 0 while it does not serve yet."""
    lines = [line for line in worker.log.read_text().splitlines() if "metrics on http" in line]
    if not lines or worker.status is not None:
        return 0.0
    url = lines[0][lines[0].index("http://") :].strip()
    text = httpx.get(url, timeout=10).text
    return next(
        float(line.split()[1])
        for line in text.splitlines()
        if line.startswith("masc_batch_rows_active ")
    )


async def until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for something that other processes do."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - other processes
            await asyncio.sleep(0.02)


def has_jobs(redis: RedisServer, worker: Process) -> bool:
    """Whether the queue takes jobs to be with a worker."""
    holder = f"{platform.node()}-{worker.pid}-"  # then a random part
    with redis.client() as client:
        client.ping()  # when it answers, all that the worker had sent before has been carried out
        jobs = client.zrange("{masc}:leases", 0, -1)
        holders = [client.hget(f"{{masc}}:job:{job}", "holder") for job in jobs]
    return any(name is not None and name.startswith(holder) for name in holders)


async def hang_in_mid_image(cluster: Cluster) -> Process:
    """Let a worker hang that has jobs, which it cannot end any more."""
    async with asyncio.timeout(60):
        while True:
            await asyncio.sleep(0.02)
            for worker in cluster.workers:
                if not active_rows(worker):
                    continue
                worker.hang()
                if has_jobs(cluster.redis, worker):
                    return worker
                worker.go_on()  # it was done before


async def kill_one(cluster: Cluster) -> float:
    """Kill a worker in mid-image and start another; seconds until its jobs were taken from it."""

    def is_relieved() -> bool:
        cluster.samples("masc_jobs_running")  # a look at the queue is enough for leases to run out
        return not has_jobs(cluster.redis, worker)

    worker = await hang_in_mid_image(cluster)
    killed = time.monotonic()
    worker.kill()
    cluster.workers.remove(worker)
    cluster.start_worker()
    await until(is_relieved, 60)
    return time.monotonic() - killed


def test_twenty_kills_under_two_hundred_jobs(
    logs: Path, redis: RedisServer, shipped: Oracle
) -> None:
    bodies = some_requests(200, seed=1, num_classes=10, max_images=4)
    expected = shipped.files(bodies)

    async def kill_twenty(cluster: Cluster) -> list[float]:
        """Seconds from each kill until no job was with that worker."""
        return [await kill_one(cluster) for _ in range(KILLS)]

    async def run(cluster: Cluster) -> tuple[list[list[bytes]], list[float]]:
        async with Client([one.url for one in cluster.front_ends]) as client:
            kills = asyncio.create_task(kill_twenty(cluster))
            made = await client.files(bodies)
            while not kills.done():  # the killer wants work
                assert await client.files(bodies[:40]) == expected[:40]
            return made, await kills

    settings = {"lease_seconds": LEASE, "max_batch": 8, "max_deliveries": 20}
    with Cluster(logs, SHIPPED, redis, **settings) as cluster:
        cluster.start(workers=3, front_ends=2)
        made, seconds = asyncio.run(run(cluster))
        assert made == expected
        assert max(seconds) <= LEASE + 5
        assert cluster.samples("masc_jobs_redelivered_total")["lease_expired"] >= KILLS
        cluster.assert_at_rest()
        ended = cluster.samples("masc_jobs_ended_total")
        assert sum(ended.values()) == ended["ok"] >= len(bodies)


@pytest.mark.parametrize("point", ["claimed", "reporting", "reported"])
def test_a_kill_at_each_point_of_the_protocol(
    point: str, logs: Path, redis: RedisServer, shipped: Oracle
) -> None:
    bodies = some_requests(6, seed=2, num_classes=10)

    async def run(cluster: Cluster) -> list[list[bytes]]:
        async with Client([cluster.front_ends[0].url]) as client:
            made = asyncio.create_task(client.files(bodies))
            await until(lambda: unlucky.status is not None, 60)
            cluster.start_worker()
            return await made

    with Cluster(logs, SHIPPED, redis, lease_seconds=LEASE) as cluster:
        unlucky = cluster.start_worker("tests.faults.unlucky_worker", point)
        cluster.start_front_end()
        cluster.wait_for_workers(1)
        assert asyncio.run(run(cluster)) == shipped.files(bodies)
        assert unlucky.status == -signal.SIGKILL
        cluster.assert_at_rest()
        assert cluster.samples("masc_jobs_ended_total")["ok"] == len(bodies)


def test_the_late_result_of_a_worker_that_was_stopped_is_refused(
    logs: Path, redis: RedisServer, shipped: Oracle
) -> None:
    (body,) = some_requests(1, seed=3, num_classes=10)

    async def run(cluster: Cluster) -> list[list[bytes]]:
        async with Client([cluster.front_ends[0].url]) as client:
            made = asyncio.create_task(client.files([body]))
            await until(lambda: stopped.is_stopped, 60)
            cluster.start_worker()
            files = await made
            stopped.go_on()
            await until(lambda: cluster.samples("masc_fenced_results_total").get("", 0) == 1, 60)
            return files

    with Cluster(logs, SHIPPED, redis, lease_seconds=LEASE) as cluster:
        stopped = cluster.start_worker("tests.faults.unlucky_worker", "stopped")
        cluster.start_front_end()
        cluster.wait_for_workers(1)
        assert asyncio.run(run(cluster)) == shipped.files([body])
        cluster.assert_at_rest()
        assert cluster.samples("masc_jobs_ended_total")["ok"] == 1


def test_a_job_longer_than_three_leases_is_executed_once(
    logs: Path, redis: RedisServer, shipped: Oracle
) -> None:
    (body,) = some_requests(1, seed=4, num_classes=10)
    body |= {"num_images": 16, "cfg_scale": 2.0}
    lease = 1.0
    with Cluster(logs, SHIPPED, redis, lease_seconds=lease, max_batch=2) as cluster:
        cluster.start(workers=2)
        started = time.monotonic()
        answer = httpx.post(f"{cluster.front_ends[0].url}/generate", json=body, timeout=120)
        assert time.monotonic() - started > 3 * lease
        assert [files_of(answer.json())] == shipped.files([body])
        cluster.assert_at_rest()
        assert not any(cluster.samples("masc_jobs_redelivered_total").values())


def test_a_job_that_kills_workers_is_given_up_and_harms_no_other(
    logs: Path, redis: RedisServer, shipped: Oracle
) -> None:
    bodies = some_requests(8, seed=5, num_classes=10)
    poison = bodies[0] | {"seed": POISON}

    async def run(cluster: Cluster) -> tuple[httpx.Response, list[list[bytes]]]:
        async with Client([cluster.front_ends[0].url]) as client:
            url = f"{cluster.front_ends[0].url}/generate"
            poisoned = asyncio.create_task(client.http.post(url, json=poison))
            made = asyncio.create_task(client.files(bodies))
            while not poisoned.done():
                running = [worker for worker in cluster.workers if worker.status is None]
                if not running:
                    cluster.start_worker("tests.faults.unlucky_worker", "poisoned")
                await asyncio.sleep(0.1)
            return await poisoned, await made

    with Cluster(logs, SHIPPED, redis, lease_seconds=LEASE) as cluster:
        cluster.start_worker("tests.faults.unlucky_worker", "poisoned")
        cluster.start_front_end()
        cluster.wait_for_workers(1)
        poisoned, made = asyncio.run(run(cluster))
        assert poisoned.status_code == 500
        assert poisoned.json()["type"] == "urn:masc:problem:gave-up"
        assert made == shipped.files(bodies)
        deaths = [worker for worker in cluster.workers if worker.status == -signal.SIGKILL]
        assert len(deaths) == 3
        cluster.assert_at_rest()
        assert cluster.samples("masc_jobs_dead_lettered_total")[""] == 1
        assert cluster.samples("masc_jobs_ended_total") == {
            "ok": len(bodies),
            "error": 1,
            "cancelled": 0,
            "expired": 0,
        }
