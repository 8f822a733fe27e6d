from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

import pytest

from masc_core.errors import QueueFullError
from worker.jobs.job import GenerationRequest, Job, JobFailure
from worker.jobs.memory import (
    DEFAULT_RETRY_AFTER,
    MAX_RETRY_AFTER,
    WINDOW_SECONDS,
    DrainRate,
    MemoryQueue,
    retry_after,
)

REQUEST = GenerationRequest("tiny", 0, 1.0, 0)
OUTCOME = JobFailure("EngineError", "none")


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


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


def test_nothing_is_left_of_ten_thousand_jobs() -> None:
    queue = MemoryQueue(max_jobs=64)
    stopping = threading.Event()

    def work() -> None:
        while not stopping.is_set():
            for job in queue.claim(16, timeout=0.05):
                queue.finish(job.id, OUTCOME)

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
    assert not queue._waiting
    assert not queue._pending


def test_a_wait_that_died_with_its_loop_does_not_disturb_the_worker() -> None:
    queue = MemoryQueue(max_jobs=1)
    job = Job(REQUEST)

    async def abandon() -> None:
        await queue.submit(job)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.outcome(job.id), 0.01)
        await queue.cancel(job.id)

    asyncio.run(abandon())
    queue.finish(job.id, OUTCOME)
    assert not queue._pending


def test_the_rate_is_measured_over_the_time_that_there_was_work() -> None:
    clock = Clock(1000.0)
    rate = DrainRate(clock)
    assert rate.per_second() == 0.0
    clock.now += 3600
    rate.restart()
    for _ in range(10):
        clock.now += 0.5
        rate.count()
    assert rate.per_second() == pytest.approx(2.0)


def test_the_rate_forgets_what_is_older_than_the_window() -> None:
    clock = Clock()
    rate = DrainRate(clock)
    for _ in range(200):
        clock.now += 0.25
        rate.count()
    assert rate.per_second() == pytest.approx(4.0, rel=0.02)
    assert len(rate._finished) <= 4 * WINDOW_SECONDS + 1
    clock.now += WINDOW_SECONDS + 1
    assert rate.per_second() == 0.0
    assert not rate._finished


def test_a_burst_at_the_very_start_has_a_finite_rate() -> None:
    rate = DrainRate(Clock())
    rate.count()
    assert rate.per_second() == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("depth", "rate", "seconds"),
    [
        (64, 2.0, 16.0),
        (64, 1000.0, 1.0),
        (64, 0.001, MAX_RETRY_AFTER),
        (64, 0.0, DEFAULT_RETRY_AFTER),
    ],
)
def test_a_refused_client_comes_back_when_half_has_drained(
    depth: int, rate: float, seconds: float
) -> None:
    assert retry_after(depth, rate) == seconds
