"""Records that cannot be read: set aside and counted, and everything else goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import redis

from masc_core.errors import EngineError
from tests.stopwatch import Stopwatch
from tests.worker.jobs.redis.conftest import MakeWorker
from tests.worker.jobs.samples import claim, job, jobs_of, result, submit, until
from worker.jobs.outcome import JobFailure
from worker.jobs.queue import QueueLimits, WorkerStatus
from worker.jobs.redis.codec import encode_job
from worker.jobs.redis.queue import RedisQueue

pytestmark = pytest.mark.anyio

LIMITS = QueueLimits()
FIELDS: tuple[str, ...] = (
    "job",
    "model",
    "owner",
    "keep",
    "key",
    "seq",
    "rows",
    "token",
    "deliveries",
)
FIELDS += ("submitted", "deadline", "state")


def without(field: str) -> Callable[[redis.Redis, str], Any]:
    return lambda inside, name: inside.hdel(name, field)


def with_value(field: str, value: str) -> Callable[[redis.Redis, str], Any]:
    return lambda inside, name: inside.hset(name, field, value)


def of_another_kind(inside: redis.Redis, name: str) -> None:
    inside.set(name, "no hash")


DAMAGES = {
    **{f"no-{field}": without(field) for field in FIELDS},
    **{f"odd-{field}": with_value(field, "nan") for field in FIELDS[5:]},
    "long-seq": with_value("seq", "9" * 40),
    "no-rows": with_value("rows", "-5"),
    "no-request": with_value("job", "from another time"),
    "other-kind": of_another_kind,
}


@pytest.mark.parametrize("due", [False, True])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_a_damaged_job_ends_and_is_in_nobody_s_way(
    damage: Callable[[redis.Redis, str], Any],
    due: bool,
    redis_url: str,
    make_worker: MakeWorker,
    inside: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = make_worker(LIMITS)
    async with RedisQueue(redis_url, LIMITS) as front:
        jobs = [job(owner="ann", keep=True) for _ in range(3)]
        await submit(front, *jobs)
        damage(inside, "{masc}:job:" + jobs[0].id)
        if due:
            inside.zadd("{masc}:deadlines", {jobs[0].id: 1})
        assert jobs_of(claim(worker)) == jobs[1:]
        outcome = await asyncio.wait_for(front.outcome(jobs[0].id), 1.0)
        assert isinstance(outcome, JobFailure)
        if not (due and damage is DAMAGES["no-request"]):  # which has not to be read to expire
            assert isinstance(outcome.to_error(), EngineError)
            totals = (await front.stats()).totals
            assert (totals.accepted, totals.ended, totals.unreadable) == (3, {"error": 1}, 1)
            assert inside.exists("{masc}:unreadable:job:" + jobs[0].id)
            await until(lambda: f"job:{jobs[0].id} cannot be read, it is set aside" in caplog.text)
        assert inside.zcard("{masc}:waiting:tiny") == 0
        assert not inside.hgetall("{masc}:owners:tiny")


async def test_a_damaged_job_that_runs_is_lost_to_its_worker(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    worker = make_worker(LIMITS)
    async with RedisQueue(redis_url, LIMITS) as front:
        await submit(front, job(), job())
        leases = claim(worker)
        inside.hdel("{masc}:job:" + leases[0].job_id, "holder")
        worker.renew(leases)
        assert worker.lost_leases(leases) == {leases[0].job_id}
        assert list(worker.report([(lease, result()) for lease in leases])) == [False, True]
        assert (await front.stats()).running == 0


async def test_a_line_of_damaged_jobs_is_passed_in_a_moment(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    async with RedisQueue(redis_url, LIMITS) as front:
        jobs = [job() for _ in range(LIMITS.max_jobs)]
        await asyncio.gather(*map(front.submit, jobs))
        for one in jobs[:-1]:
            inside.hdel("{masc}:job:" + one.id, "seq")
        with Stopwatch() as watch:
            await front.stats()
            assert jobs_of(claim(make_worker(LIMITS))) == jobs[-1:]
            stats = await front.stats()
        assert watch.seconds < 5.0
        assert (stats.depth, stats.running, stats.oldest_age) == (0, 1, 0.0)


async def test_numbers_that_cannot_be_read_begin_anew(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    worker = make_worker(LIMITS)
    async with RedisQueue(redis_url, LIMITS) as front:
        await submit(front, job(owner="ann"))
        inside.hset("{masc}:totals", "accepted", "many")
        inside.hset("{masc}:totals", "what", "ever")
        inside.hset("{masc}:owners:tiny", "ann", "some")
        inside.hset("{masc}:drained:tiny", "now", "then")
        inside.hset("{masc}:drained:tiny", "since", "long ago")
        inside.set("{masc}:seq", "the next")
        assert (await front.stats()).totals.accepted == 0
        await submit(front, job(owner="ann"))
        leases = claim(worker)
        assert len(leases) == 2
        for lease in leases:
            assert worker.report([(lease, result())]) == [True]
        assert (await front.stats()).totals.ended == {"ok": 2}
        assert not inside.exists("{masc}:owners:tiny")


async def test_workers_that_can_be_read_are_listed(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    good = WorkerStatus("a", ready=True)
    make_worker(LIMITS).announce(good)
    newer = msgspec.msgpack.encode({"worker_id": "c", "ready": "on Tuesdays"})
    async with RedisQueue(redis_url, LIMITS) as front:
        for name, data in {"b": b"\xff", "c": newer}.items():
            inside.hset("{masc}:workers", name, data)
        for _ in range(3):
            front._worker_list.has_changed()
            assert await front.workers() == (good,)
        assert (await front.stats()).totals.unreadable == 2
    assert caplog.text.count("an announcement of a worker cannot be read") == 2


async def test_a_request_that_is_damaged_is_told_from_one_of_a_newer_version(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    async with RedisQueue(redis_url, LIMITS) as front:
        sent = job()
        await submit(front, sent)
        half = encode_job(sent)[:-1]
        inside.hset("{masc}:job:" + sent.id, "job", half)
        assert claim(make_worker(LIMITS)) == []
        assert isinstance(await front.outcome(sent.id), JobFailure)


async def test_messages_that_nobody_understands_are_passed_over(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    worker = make_worker(LIMITS)
    async with RedisQueue(redis_url, LIMITS) as front:
        sent = job(keep=True)
        await submit(front, sent)
        (lease,) = claim(worker)
        outcome = asyncio.create_task(front.outcome(sent.id))
        await until(lambda: sent.id in front._watchers.watched)
        channels = {str(name) for name in inside.pubsub_channels("{masc}:*")}
        assert len(channels) == 4
        for channel in channels:
            for message in (b"\xff\xfe", b"", b"what is this", b"1", b"9" * 5000 + b" x"):
                assert inside.publish(channel, message) == 1
        await front.cancel(sent.id)
        await asyncio.wait_for(outcome, 5.0)
        await until(lambda: worker.lost_leases([lease]) == {sent.id})
    assert "the subscription to the queue failed" not in caplog.text
