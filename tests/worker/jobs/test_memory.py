from __future__ import annotations

import asyncio
import threading

import pytest

from masc_core.errors import QueueFullError, ResultGoneError, UnknownJobError
from tests.clock import Clock
from tests.worker.jobs.samples import result
from worker.jobs.job import GenerationRequest, Idempotency, Job
from worker.jobs.memory import COMPLETION_SECONDS, MAX_TOMBSTONES, CompletionRate, MemoryQueue
from worker.jobs.outcome import JobFailure
from worker.jobs.queue import QueueLimits, retry_after

REQUEST = GenerationRequest("tiny", 0, 1.0, 0)
OUTCOME = JobFailure("EngineError", "none")


def is_empty(queue: MemoryQueue) -> bool:
    records = (queue._records, queue._waiting, queue._running, queue._ended, queue._tombstones)
    return not any([*records, queue._by_key, queue._watchers.watched])


async def submit_and_leave(queue: MemoryQueue, number: int) -> None:
    job = Job(REQUEST)
    try:
        await queue.submit(job)
    except QueueFullError:
        return
    if number % 7 == 0:
        await queue.cancel(job.id)
    else:
        assert await queue.outcome(job.id) == OUTCOME
    await queue.forget(job.id)


def test_nothing_is_left_of_ten_thousand_jobs() -> None:
    queue = MemoryQueue(QueueLimits(max_jobs=64))
    stopping = threading.Event()

    def work() -> None:
        while not stopping.is_set():
            for lease in queue.claim("tiny", 16, timeout=0.05):
                queue.report([(lease, OUTCOME)])

    async def run() -> None:
        for start in range(0, 10_000, 80):  # at times more than the queue takes
            await asyncio.gather(*(submit_and_leave(queue, start + i) for i in range(80)))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    asyncio.run(run())
    stopping.set()
    for worker in workers:
        worker.join()
    assert is_empty(queue)
    totals = asyncio.run(queue.stats()).totals
    assert totals.accepted == sum(totals.ended.values()) > 5000


def test_a_wait_that_died_with_its_loop_does_not_disturb_the_worker() -> None:
    queue = MemoryQueue()
    job = Job(REQUEST)

    async def abandon() -> None:
        await queue.submit(job)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.outcome(job.id), 0.01)

    asyncio.run(abandon())
    (lease,) = queue.claim("tiny", 1, 0.0)
    assert queue.report([(lease, OUTCOME)]) == [True]
    asyncio.run(queue.forget(job.id))
    assert is_empty(queue)


def test_what_is_kept_goes_in_two_steps() -> None:
    clock = Clock()
    queue = MemoryQueue(QueueLimits(result_seconds=10, tombstone_seconds=100), clock)
    job = Job(REQUEST, keep=True, idempotency=Idempotency("k", "print"))
    asyncio.run(queue.submit(job))
    (lease,) = queue.claim("tiny", 1, 0.0)
    queue.report([(lease, OUTCOME)])
    clock.now = 9.9
    assert asyncio.run(queue.outcome(job.id)) == OUTCOME
    clock.now = 10.0
    with pytest.raises(ResultGoneError):
        asyncio.run(queue.outcome(job.id))
    assert not asyncio.run(queue.submit(job)).is_new
    clock.now = 100.0
    with pytest.raises(UnknownJobError):
        asyncio.run(queue.status(job.id))
    assert is_empty(queue)


def test_only_kept_results_count_and_make_room() -> None:
    made = result("x" * 1000)
    queue = MemoryQueue(QueueLimits(max_result_bytes=2500))
    kept = [Job(REQUEST, keep=True) for _ in range(3)]

    async def run() -> None:
        for job in (kept[0], *(Job(REQUEST) for _ in range(9)), kept[1]):
            await queue.submit(job)
            (lease,) = queue.claim("tiny", 1, 0.0)
            queue.report([(lease, made)])
        assert await queue.outcome(kept[0].id) == made
        await queue.submit(kept[2])
        (lease,) = queue.claim("tiny", 1, 0.0)
        queue.report([(lease, made)])
        with pytest.raises(ResultGoneError):
            await queue.outcome(kept[0].id)
        assert [await queue.outcome(job.id) for job in kept[1:]] == [made] * 2
        assert (await queue.stats()).totals.results_dropped == 1

    asyncio.run(run())


def test_a_large_result_takes_the_room_of_as_many_as_it_needs() -> None:
    queue = MemoryQueue(QueueLimits(max_result_bytes=2500))
    jobs = [Job(REQUEST, keep=True) for _ in range(3)]

    async def run() -> None:
        for job, size in zip(jobs, (1000, 1000, 2000), strict=True):
            await queue.submit(job)
            (lease,) = queue.claim("tiny", 1, 0.0)
            queue.report([(lease, result("x" * size))])
        for job in jobs[:2]:
            with pytest.raises(ResultGoneError):
                await queue.outcome(job.id)
        assert await queue.outcome(jobs[2].id) == result("x" * 2000)

    asyncio.run(run())


def test_a_request_too_many_waits_for_the_end_of_its_minute() -> None:
    clock = Clock(now=100.0)
    queue = MemoryQueue(QueueLimits(), clock)
    assert asyncio.run(queue.count_request("ann", 1)) == 0.0
    clock.now = 110.0
    assert asyncio.run(queue.count_request("ann", 1)) == 50.0
    clock.now = 160.0
    assert asyncio.run(queue.count_request("ann", 1)) == 0.0


def test_the_memory_of_what_was_has_a_bound() -> None:
    clock = Clock()
    queue = MemoryQueue(QueueLimits(result_seconds=1), clock)
    jobs = [Job(REQUEST, keep=True) for _ in range(MAX_TOMBSTONES + 5)]

    async def run() -> None:
        for job in jobs:
            await queue.submit(job)
            (lease,) = queue.claim("tiny", 1, 0.0)
            queue.report([(lease, OUTCOME)])
        clock.now = 2.0
        await queue.stats()

    asyncio.run(run())
    assert list(queue._tombstones) == [job.id for job in jobs[5:]]
    assert list(queue._records) == list(queue._tombstones)


def test_the_rate_is_measured_over_the_time_that_there_was_work() -> None:
    clock = Clock(1000.0)
    rate = CompletionRate(clock)
    assert rate.per_second() == 0.0
    clock.now += 3600
    rate.restart()
    for _ in range(10):
        clock.now += 0.5
        rate.count()
    assert rate.per_second() == pytest.approx(2.0)


def test_the_rate_forgets_what_is_older_than_the_window() -> None:
    clock = Clock()
    rate = CompletionRate(clock)
    for _ in range(200):
        clock.now += 0.25
        rate.count()
    assert rate.per_second() == pytest.approx(4.0, rel=0.02)
    assert len(rate._finished) <= 4 * COMPLETION_SECONDS + 1
    clock.now += COMPLETION_SECONDS + 1
    assert rate.per_second() == 0.0
    assert not rate._finished


def test_a_burst_at_the_very_start_has_a_finite_rate() -> None:
    rate = CompletionRate(Clock())
    rate.count()
    assert rate.per_second() == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("depth", "rate", "seconds"),
    [
        (64, 2.0, 16.0),
        (64, 1000.0, 1.0),
        (64, 0.001, 120.0),
        (64, 0.0, 5.0),
    ],
)
def test_a_refused_client_comes_back_when_half_has_drained(
    depth: int, rate: float, seconds: float
) -> None:
    assert retry_after(depth, rate) == seconds
