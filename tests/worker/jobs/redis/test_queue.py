from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from random import Random

import pytest

from tests.worker.jobs.redis.conftest import MakeWorker
from tests.worker.jobs.samples import job, result, submit
from worker.jobs.job import Lease, Started
from worker.jobs.queue import REQUEUE, QueueLimits
from worker.jobs.redis.client import QueueNamespace
from worker.jobs.redis.connection import connect_blocking
from worker.jobs.redis.consumer import RedisConsumer
from worker.jobs.redis.producer import RedisProducer
from worker.jobs.redis.queue import RedisQueue

pytestmark = pytest.mark.anyio

LIMITS = QueueLimits(max_jobs=1000, lease_seconds=0.3, max_deliveries=1000)
NAMESPACE = QueueNamespace.of(LIMITS, 0)


async def test_the_two_sides_do_not_touch_each_other(redis_url: str) -> None:
    with closing(RedisConsumer(connect_blocking(redis_url), LIMITS, NAMESPACE)) as consumer:
        async with RedisProducer(redis_url, LIMITS, NAMESPACE) as producer:
            mine, yours = {*vars(producer), *vars(RedisProducer)}, vars(RedisConsumer).keys()
            common = mine & {*vars(consumer), *yours}
    assert not {name for name in common if not name.startswith("__")}


class Worker:
    """Claims at random and does with its jobs what may happen to them."""

    def __init__(self, queue: RedisQueue, seed: int) -> None:
        self.queue, self.random = queue, Random(seed)
        self.accepted: list[str] = []

    def run(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            for lease in self.queue.claim("tiny", self.random.randint(1, 8), timeout=0.05):
                self.serve(lease)

    def serve(self, lease: Lease) -> None:
        fate = self.random.random()
        self.queue.report([(lease, Started("v1"))])
        if fate < 0.1:
            return  # it is lost with the job
        if fate < 0.2:
            self.queue.report([(lease, REQUEUE)])
            return
        if fate < 0.25:
            stalled = threading.Event()
            stalled.wait(0.4)  # longer than its lease
        if self.queue.report([(lease, result(lease.job_id))]) == [True]:
            self.accepted.append(lease.job_id)


async def test_workers_in_a_muddle_lose_and_double_nothing(
    redis_url: str, make_worker: MakeWorker
) -> None:
    workers = [Worker(make_worker(LIMITS), seed) for seed in range(4)]
    stopping = threading.Event()
    with ThreadPoolExecutor(len(workers)) as pool:
        running = [pool.submit(worker.run, stopping) for worker in workers]
        try:
            async with RedisQueue(redis_url, LIMITS) as front, asyncio.timeout(60.0):
                jobs = [job() for _ in range(200)]
                await submit(front, *jobs)
                cancelled = jobs[::9]
                for one in cancelled:
                    await front.cancel(one.id)
                outcomes = await asyncio.gather(*(front.outcome(one.id) for one in jobs))
                totals = (await front.stats()).totals
        finally:
            stopping.set()
    for future in running:
        future.result()
    served = [one.id for one, end in zip(jobs, outcomes, strict=True) if end == result(one.id)]
    assert sorted(job_id for worker in workers for job_id in worker.accepted) == sorted(served)
    assert len(served) >= len(jobs) - len(cancelled)
    assert totals.accepted == sum(totals.ended.values()) == 200
    assert totals.ended["ok"] == len(served)
    assert totals.fenced > 0
    assert min(totals.redelivered.values()) > 0
