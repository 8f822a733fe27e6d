from __future__ import annotations

import pytest
import redis

from tests.worker.jobs.redis.conftest import MakeWorker
from tests.worker.jobs.samples import claim, job, submit
from worker.jobs.queue import REQUEUE, QueueLimits
from worker.jobs.redis.queue import RedisQueue

pytestmark = pytest.mark.anyio

LIMITS = QueueLimits()


async def test_what_a_worker_waits_for_costs_next_to_nothing(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    worker = make_worker(LIMITS)
    worker.claim("tiny", 1, timeout=0.1)
    before = inside.info()["total_commands_processed"]
    worker.claim("tiny", 1, timeout=1.2)
    calls = 4  # one at the start, then every half second, and one at the end
    assert inside.info()["total_commands_processed"] - before < 10 * calls


async def test_operators_see_who_has_what(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    workers = [make_worker(LIMITS) for _ in range(2)]
    async with RedisQueue(redis_url, LIMITS) as front:
        await submit(front, *(job() for _ in range(5)))
        leases = [claim(workers[0], 1), claim(workers[1], 2)]
        workers[1].report([(leases[1][0], REQUEUE)])
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
