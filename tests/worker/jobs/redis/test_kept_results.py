"""What kept results are counted with is what they take, whatever becomes of them."""

from __future__ import annotations

import asyncio
from contextlib import closing, suppress

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from masc_core.errors import MascError
from tests.worker.jobs.redis.conftest import MakeWorker, check_result_bytes
from tests.worker.jobs.samples import claim, job, result, submit
from worker.jobs.queue import QueueLimits
from worker.jobs.redis.queue import RedisQueue

LIMITS = QueueLimits(max_result_bytes=20_000)
FATES = (
    "finish",
    "finish",
    "finish unkept",
    "forget",
    "run out",
    "run out after its key",
    "be forgotten",
    "lose its record",
    "lose its record's size",
    "lose its image",
    "lose all",
    "be set aside",
)


async def let(fate: str, job_id: str, size: int, queue: RedisQueue, inside: redis.Redis) -> str:
    """Let something happen to a job that has ended, or to a new one, whose id is returned."""
    record, outcome = "{masc}:job:" + job_id, "{masc}:outcome:" + job_id
    match fate:
        case "finish" | "finish unkept":
            sent = job(keep=fate == "finish")
            await submit(queue, sent)
            assert queue.report([(claim(queue)[0], result("x" * size))]) == [True]
            return sent.id
        case "forget":
            await queue.forget(job_id)
        case "run out" | "run out after its key":
            if fate != "run out":
                inside.delete(outcome)
            inside.zadd("{masc}:results", {job_id: 1}, xx=True)
        case "be forgotten":
            inside.zadd("{masc}:ended", {job_id: 1}, xx=True)
        case "lose its record":
            inside.delete(record)
        case "lose its record's size":
            inside.hdel(record, "bytes")
        case "lose its image" | "lose all":
            inside.delete(outcome, *([record] if fate == "lose all" else []))
            with suppress(MascError):
                await queue.outcome(job_id)
            inside.zadd("{masc}:results", {job_id: 1}, xx=True)
        case "be set aside":
            inside.set(record, "what is this")
            with suppress(MascError):
                await queue.status(job_id)
    return ""


def test_the_sum_is_of_what_is_there(redis_url: str, inside: redis.Redis) -> None:
    async def run(fates: list[tuple[str, int, int]]) -> None:
        inside.flushall()
        queue = RedisQueue(redis_url, LIMITS)
        async with queue:
            jobs = ["nobody's"]
            for fate, which, size in fates:
                job_id = jobs[which % len(jobs)]
                new = await let(fate, job_id, size, queue, inside)
                jobs += [new] if new else []
                await queue.stats()  # which sweeps
                taken = check_result_bytes(inside)
                assert taken <= LIMITS.max_result_bytes or inside.zcard("{masc}:results") == 1

    fates = st.tuples(st.sampled_from(FATES), st.integers(0, 30), st.integers(0, 12_000))

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(fates, min_size=10, max_size=40))
    def check(drawn: list[tuple[str, int, int]]) -> None:
        asyncio.run(run(drawn))

    check()


@pytest.mark.anyio
async def test_a_hundred_that_run_out_at_once_let_nobody_beyond_the_bound(
    redis_url: str, inside: redis.Redis
) -> None:
    with closing(RedisQueue(redis_url, LIMITS)) as worker:
        async with RedisQueue(redis_url, LIMITS) as front:
            for size, num_jobs in ((20, 100), (2000, 20)):
                jobs = [job(keep=True) for _ in range(num_jobs)]
                await submit(front, *jobs)
                reports = [(lease, result("x" * size)) for lease in claim(worker)]
                names = inside.zrange("{masc}:results", 0, -1)
                for name in names:
                    inside.zadd("{masc}:results", {str(name): 1})
                assert all(worker.report(reports))
                assert check_result_bytes(inside) <= LIMITS.max_result_bytes
            assert await front.outcome(jobs[-1].id) == result("x" * 2000)


@pytest.mark.anyio
async def test_a_job_is_known_for_as_long_as_its_images(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    limits = QueueLimits(result_seconds=200_000.0)  # more than a tombstone's day
    worker = make_worker(limits)
    async with RedisQueue(redis_url, limits) as front:
        sent = job(keep=True)
        await submit(front, sent)
        worker.report([(claim(worker)[0], result())])
        ends = [inside.pexpiretime(f"{{masc}}:{place}:{sent.id}") for place in ("outcome", "job")]
        assert 0 < ends[0] <= ends[1]
        inside.zadd("{masc}:ended", {sent.id: (inside.zscore("{masc}:ended", sent.id) or 0) - 1e8})
        assert await front.outcome(sent.id) == result()


@pytest.mark.anyio
async def test_a_time_that_no_clock_reaches_is_one(redis_url: str, make_worker: MakeWorker) -> None:
    limits = QueueLimits(result_seconds=1e300, tombstone_seconds=1e300, lease_seconds=1e300)
    worker = make_worker(limits)
    async with RedisQueue(redis_url, limits) as front:
        sent = job(keep=True, timeout=1e300)
        await submit(front, sent)
        assert worker.report([(claim(worker)[0], result())]) == [True]
        assert await front.outcome(sent.id) == result()
