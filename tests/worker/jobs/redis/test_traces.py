"""What jobs leave behind in Redis: nothing once they are forgotten, little once they have ended."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest
import redis

from masc_core.errors import ResultGoneError
from tests.worker.jobs.redis.conftest import MakeWorker
from tests.worker.jobs.samples import claim, collect, job, result, submit
from worker.jobs.job import Idempotency, Started
from worker.jobs.queue import QueueLimits
from worker.jobs.redis.queue import RedisQueue

pytestmark = pytest.mark.anyio

LIMITS = QueueLimits(max_jobs=1000)
ALWAYS_THERE = {"drained:tiny", "idle:tiny", "models", "virtual", "finish:tiny", "totals"}


def names(inside: redis.Redis) -> set[str]:
    return {str(key).removeprefix("{masc}:") for key in inside.scan_iter()}


async def test_nothing_is_left_of_two_thousand_jobs(
    redis_url: str,
    make_worker: MakeWorker,
    inside: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # More at once than Redis answers within the limit on a busy machine; what is left is the same.
    monkeypatch.setattr("worker.jobs.redis.producer.CALL_SECONDS", 10.0)
    worker = make_worker(LIMITS)
    stopping = threading.Event()

    def work() -> None:
        while not stopping.is_set():
            for lease in worker.claim("tiny", 64, timeout=0.05):
                worker.report([(lease, Started("v1"))])
                worker.report([(lease, result())])

    async def generate(front: RedisQueue, number: int) -> None:
        sent = job(idempotency=Idempotency(str(number), "print") if number % 3 else None)
        await submit(front, sent)
        if number % 7:
            assert await front.outcome(sent.id) == result()
        else:
            await front.cancel(sent.id)
        await front.forget(sent.id)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        async with RedisQueue(redis_url, LIMITS) as front, asyncio.timeout(60.0):
            used = []
            for start in range(0, 2000, 100):
                await asyncio.gather(*(generate(front, start + i) for i in range(100)))
                used.append(int(inside.info("memory")["used_memory"]))
            totals = (await front.stats()).totals
    finally:
        stopping.set()
        thread.join()
    assert totals.accepted == sum(totals.ended.values()) == 2000
    assert names(inside) == ALWAYS_THERE
    assert max(used[-5:]) < max(used[:5]) + 100_000


async def test_what_is_kept_goes_in_two_steps(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    limits = QueueLimits(result_seconds=50.0, tombstone_seconds=500.0)
    worker = make_worker(limits)
    async with RedisQueue(redis_url, limits) as front:
        sent = job(keep=True, idempotency=Idempotency("k", "print"))
        await submit(front, sent)
        (lease,) = claim(worker)
        worker.report([(lease, Started("v1"))])
        waiting = asyncio.create_task(front.outcome(sent.id))
        async with asyncio.timeout(5.0):
            while not inside.exists("{masc}:watch:" + sent.id):  # noqa: ASYNC110 - polled
                await asyncio.sleep(0.001)
        worker.report([(lease, result())])
        assert await waiting == result()
        assert not inside.exists("{masc}:watch:" + sent.id)
        kept = {"outcome": 50, "events": 50, "job": 500}
        for kind, seconds in kept.items():
            assert seconds - 10 < inside.ttl("{masc}:" + f"{kind}:{sent.id}") <= seconds
        assert 490 < inside.ttl("{masc}:key:0::k") <= 500
        inside.delete("{masc}:outcome:" + sent.id, "{masc}:events:" + sent.id)  # as time would
        with pytest.raises(ResultGoneError):
            await front.outcome(sent.id)
        with pytest.raises(ResultGoneError):
            await collect(front, sent.id)
        assert not (await front.submit(sent)).is_new


async def test_an_outcome_that_nobody_fetches_goes_soon(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    worker = make_worker(LIMITS)
    async with RedisQueue(redis_url, LIMITS) as front:
        sent = job()
        await submit(front, sent)
        worker.report([(claim(worker)[0], result())])
        assert 50 < inside.ttl("{masc}:outcome:" + sent.id) <= 60


async def test_the_memory_of_what_was_has_a_bound(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.jobs.redis.client.MAX_ENDED", 5)
    brief = replace(LIMITS, result_seconds=0.02)
    worker = make_worker(brief)
    async with RedisQueue(redis_url, brief) as front:
        jobs = [job(keep=True, idempotency=Idempotency(str(i), "print")) for i in range(9)]
        for one in jobs[:8]:
            await submit(front, one)
            worker.report([(claim(worker)[0], result())])
            await asyncio.sleep(0.002)  # the order is that of the milliseconds
        await asyncio.sleep(0.03)
        await submit(front, jobs[8])
        worker.report([(claim(worker)[0], result())])
    expected = {f"job:{one.id}" for one in jobs[4:]} | {f"key:0::{i}" for i in range(4, 9)}
    outcomes = {f"outcome:{jobs[8].id}", "results"}
    assert names(inside) - outcomes == ALWAYS_THERE | {"ended"} | expected


async def test_what_is_still_to_be_had_is_not_forgotten_for_the_bound(
    redis_url: str, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.jobs.redis.client.MAX_ENDED", 2)
    worker = make_worker(LIMITS)
    async with RedisQueue(redis_url, LIMITS) as front:
        jobs = [job(keep=True) for _ in range(5)]
        for one in jobs:
            await submit(front, one)
            worker.report([(claim(worker)[0], result())])
        for one in jobs:
            assert await front.outcome(one.id) == result()


async def test_a_job_whose_keys_were_removed_blocks_nobody(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    worker = make_worker(LIMITS)
    async with RedisQueue(redis_url, LIMITS) as front:
        jobs = [job() for _ in range(4)]
        await submit(front, *jobs)
        (running,) = claim(worker, 1)
        inside.delete("{masc}:job:" + jobs[0].id, "{masc}:job:" + jobs[1].id)
        for place in ("leases", "deadlines"):
            inside.zadd("{masc}:" + place, {jobs[0].id: 1})
        inside.zadd("{masc}:deadlines", {jobs[1].id: 1})
        assert [lease.job for lease in claim(worker)] == jobs[2:]
        assert worker.report([(running, result())]) == [False]
        stats = await front.stats()
        assert (stats.depth, stats.running) == (0, 2)
