from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from masc_core.errors import DeadlineError, JobCancelledError, QueueDownError, UnknownJobError
from server.answers.job_updates import (
    JobUpdate,
    job_updates,
    queue_position,
    release,
)
from server.schemas.job import QueuedEvent
from server.state import app_state
from tests.clock import Clock
from tests.server.asgi import until
from tests.server.service import Service, paint
from worker.jobs.job import Event, GenerationRequest, Job, Lease, NumberedEvent, Progress, Started
from worker.jobs.memory import MemoryQueue
from worker.jobs.outcome import JobFailure, JobResult
from worker.jobs.queue import REQUEUE, JobStatus

pytestmark = pytest.mark.anyio

STARTED = Started("v1")
EVENTS: tuple[Event, ...] = (STARTED, Progress(0, 1, 2), Progress(0, 2, 2))
JOB = Job(GenerationRequest("tiny", 1, 1.0, 0))


@pytest.fixture
def queue() -> MemoryQueue:
    return MemoryQueue()


def waits(position: int, seconds: float | None) -> QueuedEvent:
    return QueuedEvent(position=position, estimated_start_seconds=seconds)


follow = partial(job_updates, poll_seconds=0.005)


def claim(queue: MemoryQueue) -> Lease:
    (lease,) = queue.claim("tiny", 1, 0.0)
    return lease


def work(queue: MemoryQueue) -> None:
    lease = claim(queue)
    for event in EVENTS:
        queue.report([(lease, event)])
    queue.report([(lease, paint(lease.job))])


async def updates(queue: MemoryQueue, after: int | None = 0) -> list[JobUpdate]:
    return [update async for update in follow(queue, JOB.id, after)]


async def test_every_moment_in_order(queue: MemoryQueue) -> None:
    await queue.submit(JOB)
    updates = follow(queue, JOB.id)
    assert await anext(updates) == waits(0, None)
    work(queue)
    rest = [update async for update in updates]
    told = [NumberedEvent(i, event) for i, event in enumerate(EVENTS, 1)]
    assert rest == [*told, paint(JOB)]


async def test_what_has_ended_can_be_followed_from_anywhere(queue: MemoryQueue) -> None:
    await queue.submit(JOB)
    work(queue)
    told = [NumberedEvent(i, event) for i, event in enumerate(EVENTS, 1)]
    for known in range(5):
        assert await updates(queue, known) == [*told[known:], paint(JOB)]
    assert await updates(queue, None) == [paint(JOB)]


async def test_the_place_is_told_when_it_changes(queue: MemoryQueue) -> None:
    ahead = [Job(JOB.request) for _ in range(2)]
    for job in (*ahead, JOB):
        await queue.submit(job)
    seen: list[JobUpdate] = []
    async for update in follow(queue, JOB.id):
        seen.append(update)
        if isinstance(update, QueuedEvent):
            asyncio.get_running_loop().call_later(
                0.03, work, queue
            )  # polls see no change until then
    positions = [update.position for update in seen if isinstance(update, QueuedEvent)]
    assert positions == [2, 1, 0]
    assert isinstance(seen[-1], JobResult)


async def test_why_there_are_no_images_is_raised(queue: MemoryQueue) -> None:
    await queue.submit(JOB)
    updates = follow(queue, JOB.id)
    await anext(updates)
    await queue.cancel(JOB.id)
    with pytest.raises(JobCancelledError):
        await anext(updates)
    with pytest.raises(UnknownJobError):
        await anext(job_updates(queue, "nobody"))


@pytest.mark.parametrize("running", [False, True])
async def test_after_the_time_is_up_it_is_given_up(queue: MemoryQueue, running: bool) -> None:
    await queue.submit(JOB)
    if running:
        queue.report([(claim(queue), STARTED)])
    loop = asyncio.get_running_loop()
    started = loop.time()
    with pytest.raises(DeadlineError):
        async for _ in follow(queue, JOB.id, until=started + 0.05):
            pass
    assert 0.04 < loop.time() - started < 2.0
    with pytest.raises(DeadlineError):
        await anext(follow(queue, JOB.id, None, until=started))
    shown: list[JobUpdate] = []
    with pytest.raises(DeadlineError):
        await asyncio.wait_for(_keep(follow(queue, JOB.id, until=started - 1.0), shown), 5.0)
    assert len(shown) <= 1  # where it is, and no more


async def _keep(updates: AsyncIterator[JobUpdate], shown: list[JobUpdate]) -> None:
    async for update in updates:
        shown.append(update)  # noqa: PERF401 - what came before the error counts


async def test_whoever_stops_following_leaves_nothing_behind(queue: MemoryQueue) -> None:
    await queue.submit(JOB)
    updates = follow(queue, JOB.id)
    await anext(updates)
    waiting = asyncio.ensure_future(anext(updates))
    await until(lambda: queue._watchers.watched == {JOB.id})
    waiting.cancel()
    await asyncio.wait({waiting})
    assert not queue._watchers.watched
    queue.report([(claim(queue), STARTED)])
    updates = follow(queue, JOB.id)
    assert await anext(updates) == NumberedEvent(1, STARTED)
    await updates.aclose()
    assert not queue._watchers.watched


@pytest.mark.parametrize(
    ("keep", "known", "ends"),
    [
        (False, {"expired": False}, {"cancelled": 1}),
        (False, {"expired": True}, {"expired": 1}),
        (False, {"expired": False, "has_ended": True}, {}),
        (True, {"expired": False}, {}),  # others may wait for it
        (True, {"expired": True}, {"expired": 1}),
        (True, {"expired": True, "has_ended": True}, {}),
    ],
)
async def test_a_job_that_no_request_waits_for_ends_unless_it_is_kept(
    tmp_path: Path, keep: bool, known: dict[str, bool], ends: dict[str, int]
) -> None:
    service = Service(tmp_path, working=False)
    job, queue = replace(JOB, keep=keep), service.queue
    await queue.submit(job)
    await release(app_state(service.app), job, **known)
    assert (await queue.stats()).totals.ended == ends
    if keep or not ends:
        assert (await queue.status(job.id)).state == next(iter(ends), "waiting")
    else:
        with pytest.raises(UnknownJobError):
            await queue.status(job.id)


class _FlakyQueue(MemoryQueue):
    """Cannot say where a job is, every second time."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = itertools.count()

    async def status(self, job_id: str) -> JobStatus:
        if next(self.calls) % 2 == 0:
            raise QueueDownError("away")
        return await super().status(job_id)


async def test_a_queue_that_is_away_for_a_moment_is_waited_for() -> None:
    queue = _FlakyQueue()
    await queue.submit(JOB)
    updates = follow(queue, JOB.id)
    assert await anext(updates) == waits(0, None)
    work(queue)
    assert len([update async for update in updates]) == 4


class _CountingQueue(MemoryQueue):
    """Counts the events that are asked of it."""

    taken = 0

    async def events(self, job_id: str, after: int = 0) -> AsyncIterator[NumberedEvent]:
        async for event in super().events(job_id, after):
            self.taken += 1
            yield event


async def test_a_slow_reader_takes_one_event_ahead_and_no_more() -> None:
    queue = _CountingQueue()
    await queue.submit(JOB)
    lease = claim(queue)
    for rows in range(100):
        queue.report([(lease, Progress(0, rows, 100))])
    slow = follow(queue, JOB.id)
    await anext(slow)
    queue.report([(lease, paint(JOB))])
    assert len(await updates(queue)) == 101
    assert queue.taken <= 100 + 2
    rest: list[Any] = [update async for update in slow]
    assert [update.number for update in rest[:-1]] == list(range(2, 101))


@pytest.mark.parametrize(
    ("position", "rate", "seconds"),
    [(0, 0.0, None), (0, 4.0, 0.25), (3, 4.0, 1.0), (6, 3.0, 2.333)],
)
def test_start_seconds(position: int, rate: float, seconds: float | None) -> None:
    status = JobStatus(JOB, "waiting", position, 0, rate)
    assert queue_position(status) == waits(position, seconds)


def test_a_place_is_for_those_who_wait() -> None:
    clock = Clock()
    queue = MemoryQueue(clock=clock)
    jobs = [Job(GenerationRequest("tiny", 0, 1.0, i)) for i in range(4)]

    async def places() -> list[QueuedEvent | None]:
        return [queue_position(await queue.status(job.id)) for job in jobs]

    async def run() -> None:
        for job in jobs:
            await queue.submit(job)
        assert await places() == [waits(i, None) for i in range(4)]
        first, second = queue.claim("tiny", 2, 0.0)
        clock.now = 5.0
        queue.report([(first, JobFailure("EngineError", "none"))])
        assert await places() == [None, None, waits(0, 5.0), waits(1, 10.0)]
        queue.report([(second, REQUEUE)])
        assert (await places())[1:] == [
            waits(0, 5.0),
            waits(1, 10.0),
            waits(2, 15.0),
        ]

    asyncio.run(run())
