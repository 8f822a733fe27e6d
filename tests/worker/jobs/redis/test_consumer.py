from __future__ import annotations

import pytest
import redis

from tests.worker.jobs.redis.conftest import MakeWorker
from tests.worker.jobs.samples import claim, job, jobs_of, submit
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


async def test_the_group_can_be_made_again(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    worker = make_worker(LIMITS)
    async with RedisQueue(redis_url, LIMITS) as front:
        jobs = [job() for _ in range(4)]
        await submit(front, *jobs)
        first = claim(worker, 2)
        worker.hand_back(first[1:])
        inside.xgroup_destroy("{masc}:stream:tiny", "workers")
        worker.renew(first)
        assert jobs_of(claim(worker, 1)) == [jobs[1]]
        assert jobs_of(claim(worker)) == jobs[2:]
        (group,) = inside.xinfo_groups("{masc}:stream:tiny")
        assert group["pending"] == 3


async def test_operators_see_who_has_what(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    workers = [make_worker(LIMITS) for _ in range(2)]
    async with RedisQueue(redis_url, LIMITS) as front:
        await submit(front, *(job() for _ in range(5)))
        leases = [claim(workers[0], 1), claim(workers[1], 2)]
        workers[1].hand_back(leases[1][:1])
        claim(workers[0], 1)
        pending = inside.xpending_range("{masc}:stream:tiny", "workers", "-", "+", 10)
        assert [entry["consumer"] for entry in pending] == [
            workers[0]._name,
            workers[0]._name,
            workers[1]._name,
        ]
        assert inside.xlen("{masc}:stream:tiny") == 5
