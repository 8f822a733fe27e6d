from __future__ import annotations

import pytest
import redis

from tests.worker.jobs.redis.conftest import MakeWorker
from tests.worker.jobs.samples import claim, job, jobs_of, result, submit
from worker.jobs.queue import QueueLimits
from worker.jobs.redis.consumer import UNREADABLE
from worker.jobs.redis.queue import RedisQueue

pytestmark = pytest.mark.anyio

LIMITS = QueueLimits()


async def test_a_job_that_cannot_be_read_fails_and_its_mates_do_not(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    async with RedisQueue(redis_url, LIMITS) as front:
        jobs = [job() for _ in range(3)]
        await submit(front, *jobs)
        inside.hset("{masc}:job:" + jobs[1].id, "job", "from another time")
        assert jobs_of(claim(make_worker(LIMITS))) == [jobs[0], jobs[2]]
        assert await front.outcome(jobs[1].id) == UNREADABLE


async def test_what_a_worker_waits_for_costs_next_to_nothing(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    worker = make_worker(LIMITS)
    worker.claim("tiny", 1, timeout=0.1)
    before = inside.info()["total_commands_processed"]
    worker.claim("tiny", 1, timeout=1.2)
    calls = 4  # one at the start, then every half second, and one at the end
    assert inside.info()["total_commands_processed"] - before < 10 * calls


async def test_jobs_that_an_earlier_version_accepted_go_on(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    """It kept a stream of jobs besides, whose pending entries said who runs which."""
    worker = make_worker(LIMITS)
    async with RedisQueue(redis_url, LIMITS) as front:
        jobs = [job(keep=True) for _ in range(3)]
        await submit(front, *jobs)
        for number, one in enumerate(jobs, start=1):
            inside.xadd("{masc}:stream:tiny", {"job": one.id, "rows": 1}, id=f"{number}-1")
        inside.xgroup_create("{masc}:stream:tiny", "workers", "0")
        inside.xreadgroup("workers", "gone", {"{masc}:stream:tiny": ">"}, count=1)
        running = claim(worker, 1)
        worker.renew(running)
        worker.hand_back(running)
        for lease in claim(worker):
            assert worker.finish(lease, result(lease.job_id))
        outcomes = [await front.outcome(one.id) for one in jobs]
        assert outcomes == [result(one.id) for one in jobs]
        assert (await front.stats()).totals.ended == {"ok": 3}


async def test_operators_see_who_has_what(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    workers = [make_worker(LIMITS) for _ in range(2)]
    async with RedisQueue(redis_url, LIMITS) as front:
        await submit(front, *(job() for _ in range(5)))
        leases = [claim(workers[0], 1), claim(workers[1], 2)]
        workers[1].hand_back(leases[1][:1])
        (again,) = claim(workers[0], 1)
        holders = {
            str(job_id): inside.hget("{masc}:job:" + str(job_id), "holder")
            for job_id in inside.zrange("{masc}:leases", 0, -1)
        }
        assert holders == {
            leases[0][0].job_id: workers[0]._name,
            again.job_id: workers[0]._name,
            leases[1][1].job_id: workers[1]._name,
        }
        assert inside.zcard("{masc}:waiting:tiny") == 2
