"""A worker whose queue is in Redis: what it asks of it, and that no step waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise

import pytest

from masc_core.bundle.read import Bundle
from tests.redis_server import RedisServer
from tests.tiny_bundle import GRID
from tests.worker.tiny_worker import REQUEST, engine_of, expected, images, make_loop, running
from worker.engine.engine import Engine
from worker.engine.request import EngineOutput
from worker.jobs.job import Event, Job, Lease, Preview, Progress, Started
from worker.jobs.outcome import Outcome
from worker.jobs.queue import JobReport, QueueLimits
from worker.jobs.redis.connection import ANSWER_SECONDS
from worker.jobs.redis.queue import RedisQueue
from worker.model.loaded_version import WARM_UP

LIMITS = QueueLimits()
L = GRID**2


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """One of the test's own, which may hang."""
    with RedisServer() as server:
        yield server


class CountingQueue(RedisQueue):
    """Counts what the loop asks of it; each call is one script."""

    num_claims = 0
    num_reports = 0

    def claim(self, model: str, max_rows: int, timeout: float) -> Sequence[Lease]:
        self.num_claims += 1
        return super().claim(model, max_rows, timeout)

    def report(self, reports: Sequence[JobReport]) -> Sequence[bool]:
        self.num_reports += 1
        return super().report(reports)


class ServingEngine(Engine):
    """Remembers when it made a step that was not of the warm-up, and calls back in each."""

    def step(self) -> Sequence[EngineOutput]:
        if all(task.job_id != WARM_UP for task in self.tasks):
            self.times = [*getattr(self, "times", []), time.monotonic()]
            self.in_step(len(self.times))
        return super().step()

    def in_step(self, number: int) -> None:
        """Do nothing."""


def serve(
    url: str, queue: RedisQueue, bundle: Bundle, job: Job, engine: type[Engine] = Engine
) -> tuple[Outcome, list[Event]]:
    """How a job ends that is alone with its worker, and what was told of it."""

    async def main() -> tuple[Outcome, list[Event]]:
        async with RedisQueue(url, LIMITS) as front:
            await front.submit(job)
            outcome = await asyncio.wait_for(front.outcome(job.id), 60)
            return outcome, [numbered.event async for numbered in front.events(job.id)]

    with closing(queue), running(make_loop(bundle, queue, engine=engine)):
        return asyncio.run(main())


def test_an_image_takes_a_few_calls_however_many_steps_it_takes(
    redis_url: str, bundle: Bundle
) -> None:
    queue = CountingQueue(redis_url, LIMITS)
    outcome, events = serve(redis_url, queue, bundle, Job(REQUEST))
    assert [image.data for image in images(outcome)] == expected(bundle, REQUEST)
    assert events == []
    assert queue.num_reports == 1
    assert queue.num_claims <= 4 < L  # the first one, one that takes the job, one that finds none


def test_the_events_of_many_images_come_in_order_and_a_step_takes_one_call_at_most(
    redis_url: str, bundle: Bundle
) -> None:
    queue = CountingQueue(redis_url, LIMITS)
    request = replace(REQUEST, num_images=16)
    outcome, events = serve(redis_url, queue, bundle, Job(request, previews=True, keep=True))
    assert [image.data for image in images(outcome)] == expected(bundle, request)
    assert events[0] == Started("1")
    for index in range(16):
        told = [e for e in events if isinstance(e, Progress) and e.image == index]
        assert told == [Progress(index, rows, GRID) for rows in range(1, GRID)]
    for preview in events:
        if isinstance(preview, Preview):
            progress = Progress(preview.image, preview.rows, GRID)
            assert events.index(progress) < events.index(preview)
    assert queue.num_reports <= L + 2 < 16 * (GRID - 1)


def test_steps_go_on_while_redis_hangs(server: RedisServer, bundle: Bundle) -> None:
    class HangingEngine(ServingEngine):
        def in_step(self, number: int) -> None:
            if number == 2:
                server.hang()
            elif number == L:
                server.go_on()

    queue = RedisQueue(server.url, LIMITS)
    job = Job(replace(REQUEST, num_images=4), previews=True)
    loop = make_loop(bundle, queue, engine=HangingEngine)

    async def main() -> Outcome:
        async with RedisQueue(server.url, LIMITS) as front:
            await front.submit(job)
            return await asyncio.wait_for(front.outcome(job.id), 60)

    with closing(queue), running(loop):
        outcome = asyncio.run(main())
    assert [image.data for image in images(outcome)] == expected(bundle, job.request)
    engine = engine_of(loop)
    assert isinstance(engine, ServingEngine)
    assert len(engine.times) == L
    assert max(b - a for a, b in pairwise(engine.times)) < ANSWER_SECONDS / 2


def test_a_stopped_worker_ends_what_has_begun_and_gives_back_the_rest(
    redis_url: str, bundle: Bundle
) -> None:
    class StoppingEngine(ServingEngine):
        def in_step(self, number: int) -> None:
            if number == 2:
                loop.stop()

    jobs = [Job(replace(REQUEST, num_images=3)), Job(REQUEST), Job(REQUEST)]

    async def main() -> list[str]:
        async with RedisQueue(redis_url, LIMITS) as front:
            for job in jobs:
                await front.submit(job)
            await asyncio.to_thread(loop.run)
            assert await front.workers() == ()
            return [(await front.status(job.id)).state for job in jobs]

    with closing(RedisQueue(redis_url, LIMITS)) as queue:
        loop = make_loop(bundle, queue, 4, StoppingEngine)
        assert asyncio.run(main()) == ["ok", "waiting", "waiting"]
    assert loop.is_idle
