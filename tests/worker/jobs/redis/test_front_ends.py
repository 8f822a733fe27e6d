"""Several front ends over one queue, and many who wait at one of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import redis

from tests.stopwatch import Stopwatch
from tests.worker.jobs.redis.conftest import MakeWorker
from tests.worker.jobs.samples import claim, collect, job, result, submit, until
from worker.jobs.job import Event, Idempotency, NumberedEvent, Preview, Progress, Started
from worker.jobs.queue import QueueLimits, Totals, WorkerStatus
from worker.jobs.redis.queue import RedisQueue

pytestmark = pytest.mark.anyio

LIMITS = QueueLimits(max_jobs=1000)
EVENTS: list[Event] = [Started("v1"), Progress(0, 1, 8), Preview(0, 1, 8, "png", b"\x89")]
NUMBERED = [NumberedEvent(i, event) for i, event in enumerate(EVENTS, start=1)]


@pytest.fixture
async def fronts(redis_url: str) -> AsyncIterator[tuple[RedisQueue, RedisQueue]]:
    async with RedisQueue(redis_url, LIMITS) as one, RedisQueue(redis_url, LIMITS) as other:
        yield one, other


async def until_watched(front: RedisQueue, num_jobs: int) -> None:
    await until(lambda: len(front._watchers.watched) == num_jobs)


async def test_any_front_end_knows_a_job(
    fronts: tuple[RedisQueue, RedisQueue], make_worker: MakeWorker
) -> None:
    one, other = fronts
    worker = make_worker(LIMITS)
    sent = job(keep=True)
    await submit(one, sent)
    assert (await other.status(sent.id)).state == "waiting"
    outcomes = [asyncio.create_task(front.outcome(sent.id)) for front in fronts]
    for front in fronts:
        await until_watched(front, 1)
    assert worker.report([(claim(worker)[0], result())]) == [True]
    assert await asyncio.wait_for(asyncio.gather(*outcomes), 5.0) == [result()] * 2
    await submit(one, job())
    await submit(other, job())
    assert (await one.stats()).depth == (await other.stats()).depth == 2


async def test_the_front_end_of_a_job_may_die(
    redis_url: str, fronts: tuple[RedisQueue, RedisQueue], make_worker: MakeWorker
) -> None:
    _, other = fronts
    worker = make_worker(LIMITS)
    sent = job(keep=True)
    async with RedisQueue(redis_url, LIMITS) as dying:
        await submit(dying, sent)
        waiting = asyncio.create_task(dying.outcome(sent.id))
        await until_watched(dying, 1)
        waiting.cancel()
    assert worker.report([(claim(worker)[0], result())]) == [True]
    assert await other.outcome(sent.id) == result()


async def test_events_are_resumed_at_another_front_end(
    fronts: tuple[RedisQueue, RedisQueue], make_worker: MakeWorker
) -> None:
    one, other = fronts
    worker = make_worker(LIMITS)
    sent = job(keep=True)
    await submit(one, sent)
    (lease,) = claim(worker)
    stream = aiter(one.events(sent.id))
    worker.report([(lease, EVENTS[0])])
    assert await anext(stream) == NUMBERED[0]
    await stream.aclose()  # type: ignore[attr-defined]
    rest = asyncio.create_task(collect(other, sent.id, after=1))
    for event in EVENTS[1:]:
        worker.report([(lease, event)])
    worker.report([(lease, result())])
    assert await asyncio.wait_for(rest, 5.0) == NUMBERED[1:]


async def test_only_the_latest_events_are_kept(
    fronts: tuple[RedisQueue, RedisQueue],
    make_worker: MakeWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.jobs.redis.consumer.MAX_RETAINED_EVENTS", 3)
    worker = make_worker(LIMITS)
    sent = job(keep=True)
    await submit(fronts[0], sent)
    (lease,) = claim(worker)
    for i in range(200):
        worker.report([(lease, Progress(0, i, 200))])
    worker.report([(lease, result())])
    assert [event.number for event in await collect(fronts[0], sent.id)] == [198, 199, 200]


async def test_fifty_submissions_at_two_front_ends_are_one_job(
    fronts: tuple[RedisQueue, RedisQueue], make_worker: MakeWorker
) -> None:
    jobs = [job(keep=True, idempotency=Idempotency("k", "print")) for _ in range(50)]
    receipts = await asyncio.gather(
        *(fronts[i % 2].submit(one) for i, one in enumerate(jobs)),
    )
    assert len({receipt.job_id for receipt in receipts}) == 1
    assert sum(receipt.is_new for receipt in receipts) == 1
    worker = make_worker(LIMITS)
    (lease,) = claim(worker)
    worker.report([(lease, result())])
    outcomes = [fronts[i % 2].outcome(receipt.job_id) for i, receipt in enumerate(receipts)]
    assert await asyncio.gather(*outcomes) == [result()] * 50
    assert (await fronts[0].stats()).totals == Totals(1, {"ok": 1})


async def test_a_submission_whose_answer_was_lost_can_be_repeated(
    fronts: tuple[RedisQueue, RedisQueue],
) -> None:
    sent = job()
    assert (await fronts[0].submit(sent)).is_new
    assert (await fronts[0].submit(sent)).is_new
    assert (await fronts[0].stats()).totals.accepted == 1


async def test_whoever_waits_is_woken(
    fronts: tuple[RedisQueue, RedisQueue],
    make_worker: MakeWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.jobs.redis.consumer.CLAIM_POLL_SECONDS", 60.0)
    worker = make_worker(LIMITS)
    for _ in range(3):
        claiming = asyncio.create_task(asyncio.to_thread(worker.claim, "tiny", 8, 60.0))
        await asyncio.sleep(0.1)
        sent = job()
        started = time.monotonic()
        await submit(fronts[0], sent)
        (lease,) = await claiming
        outcome = asyncio.create_task(fronts[1].outcome(sent.id))
        await until_watched(fronts[1], 1)
        worker.report([(lease, result())])
        assert await outcome == result()
        assert time.monotonic() - started < 5.0


async def test_two_hundred_who_wait_need_no_more_connections(
    fronts: tuple[RedisQueue, RedisQueue], make_worker: MakeWorker, inside: redis.Redis
) -> None:
    worker = make_worker(LIMITS)
    jobs = [job() for _ in range(200)]
    await asyncio.gather(*map(fronts[0].submit, jobs))
    waiting = [asyncio.create_task(fronts[0].outcome(one.id)) for one in jobs]
    watching = [asyncio.create_task(collect(fronts[0], one.id)) for one in jobs[:100]]
    leases = claim(worker, 200)
    await until_watched(fronts[0], 200)
    assert len(inside.client_list()) <= 3 + 3 + 2 + 1  # front ends, worker, this look
    for lease in leases:
        worker.report([(lease, EVENTS[0])])
        worker.report([(lease, result(lease.job_id))])
    outcomes = await asyncio.wait_for(asyncio.gather(*waiting), 10.0)
    assert outcomes == [result(one.id) for one in jobs]
    assert await asyncio.wait_for(asyncio.gather(*watching), 10.0) == [NUMBERED[:1]] * 100
    assert fronts[0]._watchers.watched == frozenset()


async def test_whoever_stops_waiting_disturbs_nobody(
    fronts: tuple[RedisQueue, RedisQueue], make_worker: MakeWorker, inside: redis.Redis
) -> None:
    worker = make_worker(LIMITS)
    front = fronts[0]
    jobs = [job() for _ in range(100)]

    async def ask(i: int) -> object:
        await front.submit(jobs[i])
        return await front.outcome(jobs[i].id)

    before = inside.info()["total_connections_received"]
    asking = [asyncio.create_task(ask(i)) for i in range(100)]
    for i in range(0, 100, 2):
        await asyncio.sleep(0)  # at any point of the way
        asking[i].cancel()
    while (await front.stats()).totals.accepted < 50:  # noqa: ASYNC110 - polled
        await asyncio.sleep(0.001)
    for lease in claim(worker):
        worker.report([(lease, result(lease.job_id))])
    survivors = [asking[i] for i in range(1, 100, 2)]
    outcomes = await asyncio.wait_for(asyncio.gather(*survivors), 10.0)
    assert outcomes == [result(jobs[i].id) for i in range(1, 100, 2)]
    assert inside.info()["total_connections_received"] - before <= 4


async def test_what_workers_announce_is_known_everywhere_at_once(
    fronts: tuple[RedisQueue, RedisQueue], make_worker: MakeWorker
) -> None:
    worker = make_worker(LIMITS)
    ready, not_ready = WorkerStatus("a", ready=True), WorkerStatus("a", ready=False)
    seconds: list[float] = []
    for status in (ready, not_ready, ready, None, ready, None):
        if status is None:
            worker.remove_worker("a")
        else:
            worker.announce(status)
        with Stopwatch() as watch:
            for front in fronts:
                while await front.workers() != ((status,) if status else ()):  # noqa: ASYNC110 - polled
                    await asyncio.sleep(0.001)
        seconds.append(watch.seconds)
    assert sorted(seconds)[-2] < 0.1  # one of them may have met a busy machine


async def test_the_list_of_workers_is_a_local_matter(
    fronts: tuple[RedisQueue, RedisQueue], make_worker: MakeWorker, inside: redis.Redis
) -> None:
    make_worker(LIMITS).announce(WorkerStatus("a", ready=True))
    while not await fronts[0].workers():  # noqa: ASYNC110 - polled
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    before = inside.info()["total_commands_processed"]
    for _ in range(300):
        assert len(await fronts[0].workers()) == 1
    assert inside.info()["total_commands_processed"] - before < 20


async def test_a_silent_worker_is_believed_for_as_long_as_a_lease(
    redis_url: str, make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.jobs.redis.producer.WORKERS_SECONDS", 0.0)
    limits = QueueLimits(lease_seconds=2.0)
    worker = make_worker(limits)
    async with RedisQueue(redis_url, limits) as front, asyncio.timeout(15.0):
        for _ in range(2):
            told = time.monotonic()
            worker.announce(WorkerStatus("a", ready=True))
            await asyncio.sleep(0.4)
            assert len(await front.workers()) == 1
        with Stopwatch() as watch:
            while await front.workers():  # noqa: ASYNC110 - time has to pass
                await asyncio.sleep(0.02)
        assert time.monotonic() - told > limits.lease_seconds - 0.01  # clocks are rounded
        assert watch.seconds < limits.lease_seconds
