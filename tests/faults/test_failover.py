"""The master of Redis is lost under load, and its replica goes on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from tests.faults.bodies import Body, Oracle, some_requests
from tests.faults.cluster import SHIPPED, Cluster
from tests.faults.jobs import files_of_job
from tests.redis_server import RedisCluster, Sentinels

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

READY_SECONDS = 10.0


class Load:
    """Jobs that are submitted one after another, each until a front end accepts it."""

    def __init__(self, urls: list[str], bodies: list[Body]) -> None:
        self._urls, self._bodies = urls, bodies
        self.accepted: list[tuple[Body, str]] = []  # with the job's id

    async def run(self, http: httpx.AsyncClient) -> None:
        for number, body in enumerate(self._bodies):
            url = self._urls[number % len(self._urls)]
            while True:
                headers = {"Idempotency-Key": str(number)}  # the same if its answer is lost
                answer = await http.post(f"{url}/jobs", json=body, headers=headers)
                if answer.status_code in {200, 202}:
                    break
                assert answer.status_code == 503, answer.text
                await asyncio.sleep(0.1)
            self.accepted.append((body, answer.json()["id"]))


@pytest.mark.parametrize("make_group", [Sentinels, RedisCluster], ids=["sentinel", "cluster"])
def test_a_replica_goes_on_with_every_job_that_it_had(
    make_group: type[Sentinels | RedisCluster], logs: Path, shipped: Oracle
) -> None:
    bodies = some_requests(60, seed=8, num_classes=10, max_images=2)

    async def run(service: Cluster, group: Sentinels | RedisCluster) -> None:
        urls = [one.url for one in service.front_ends]
        load = Load(urls, bodies)
        async with httpx.AsyncClient(timeout=10) as http:
            submitting = asyncio.create_task(load.run(http))
            while len(load.accepted) < len(bodies) // 2:  # noqa: ASYNC110 - of a task
                await asyncio.sleep(0.01)
            group.master.kill()
            began = time.monotonic()
            with group.replica.client() as client:
                while client.info("replication").get("master_link_status") == "up":  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                had = {str(key).rpartition(":")[2] for key in client.scan_iter("{masc}:job:*")}
            at_kill = {job_id for _, job_id in load.accepted}
            for url in urls:
                while (await http.get(f"{url}/readyz")).status_code != 200:
                    assert time.monotonic() - began < READY_SECONDS
                    await asyncio.sleep(0.02)
            await submitting
            lost = at_kill - had  # in the milliseconds before, which replication does not promise
            kept = [(body, job_id) for body, job_id in load.accepted if job_id not in lost]
            made = [await files_of_job(http, f"{urls[0]}/jobs/{job_id}") for _, job_id in kept]
            assert made == shipped.files([body for body, _ in kept])
            for job_id in lost:
                assert (await http.get(f"{urls[0]}/jobs/{job_id}")).status_code == 404
            service.assert_at_rest()
            ended = service.samples("masc_jobs_ended_total")
            assert {state: num for state, num in ended.items() if num} == {"ok": len(kept)}

    options = {"lease_seconds": 5.0, "max_batch": 4}
    with (
        make_group() as group,
        Cluster(logs, SHIPPED, group.master, queue_url=group.url, **options) as service,
    ):
        service.start(workers=2, front_ends=2)
        asyncio.run(run(service, group))
