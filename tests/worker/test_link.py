"""The queue as the loop sees it, away and back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest

from masc_core.errors import QueueDownError
from tests.clock import Clock
from worker.jobs.event import Event, Started
from worker.jobs.job import GenerationRequest, Job, Lease
from worker.jobs.memory import MemoryQueue
from worker.jobs.outcome import JobFailure, JobResult, Outcome, Timings
from worker.jobs.state import WorkerStatus
from worker.link import PAUSE_SECONDS, Link

REQUEST = GenerationRequest(model="tiny", class_id=0, cfg_scale=1.0, seed=0)
RESULT = JobResult((), "tiny", "1", "0" * 64, Timings())
FAILURE = JobFailure("EngineError", "broken")


class AwayQueue(MemoryQueue):
    """A queue that can be away; counts who tries to reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False
        self.tries: list[str] = []
        self.finished: list[str] = []

    def _reach(self, what: str) -> None:
        self.tries.append(what)
        if self.is_away:
            raise QueueDownError("nobody answers")

    def claim(self, model: str, max_rows: int, timeout: float) -> Sequence[Lease]:
        self._reach("claim")
        return super().claim(model, max_rows, timeout)

    def emit(self, lease: Lease, event: Event) -> None:
        self._reach("emit")
        super().emit(lease, event)

    def finish(self, lease: Lease, outcome: Outcome) -> bool:
        self._reach("finish")
        self.finished.append(lease.job_id)
        return super().finish(lease, outcome)

    def hand_back(self, leases: Iterable[Lease]) -> None:
        self._reach("hand_back")
        super().hand_back(leases)

    def announce(self, status: WorkerStatus) -> None:
        raise AssertionError("not through the link")


def claimed(queue: MemoryQueue, link: Link, num: int = 1) -> Sequence[Lease]:
    for number in range(num):
        asyncio.run(queue.submit(Job(replace(REQUEST, seed=number), id=f"j{number}")))
    leases = link.claim("tiny", 64, 0.0)
    assert len(leases) == num
    return leases


def state(queue: MemoryQueue, job_id: str) -> str:
    return asyncio.run(queue.status(job_id)).state


def test_what_is_told_to_a_queue_that_is_there_arrives_at_once() -> None:
    queue = AwayQueue()
    link = Link(queue, Clock())
    one, two = claimed(queue, link, 2)
    link.emit(one, Started("1"))
    link.finish(one, RESULT)
    assert state(queue, "j0") == "ok"
    link.hand_back([two])
    assert state(queue, "j1") == "waiting"
    assert link.is_clear
    link.hand_back([])
    assert queue.tries == ["claim", "emit", "finish", "hand_back"]


def test_outcomes_wait_in_order_for_a_queue_that_is_away() -> None:
    queue, clock = AwayQueue(), Clock()
    link = Link(queue, clock)
    leases = claimed(queue, link, 3)
    queue.is_away = True
    outcomes: list[Outcome] = [RESULT, FAILURE, RESULT]
    for lease, outcome in zip(leases, outcomes, strict=True):
        link.finish(lease, outcome)
    for _ in range(4):
        clock.now += PAUSE_SECONDS
        link.flush()
    assert not link.is_clear
    queue.is_away = False
    clock.now += PAUSE_SECONDS
    link.flush()
    assert link.is_clear
    assert queue.finished == ["j0", "j1", "j2"]
    assert [state(queue, job_id) for job_id in queue.finished] == ["ok", "error", "ok"]


def test_a_queue_that_is_away_is_not_asked_at_every_step(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    queue, clock = AwayQueue(), Clock()
    link = Link(queue, clock)
    (lease,) = claimed(queue, link)
    queue.is_away, queue.tries = True, []
    link.finish(lease, RESULT)
    for _ in range(100):
        link.flush()
        link.emit(lease, Started("1"))
        link.hand_back([lease])
        assert link.claim("tiny", 64, 0.0) == ()
    assert queue.tries == ["finish"]
    clock.now += PAUSE_SECONDS
    link.emit(lease, Started("1"))
    assert queue.tries == ["finish", "emit"]
    queue.is_away = False
    clock.now += PAUSE_SECONDS
    link.flush()
    link.emit(lease, Started("1"))
    assert queue.tries == ["finish", "emit", "finish", "emit"]
    assert [record.message for record in caplog.records] == [
        "the queue is away: nobody answers",
        "the queue is there again",
    ]


def test_a_result_that_comes_too_late_is_refused_and_forgotten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = AwayQueue()
    link = Link(queue, Clock())
    (lease,) = claimed(queue, link)
    asyncio.run(queue.cancel("j0"))
    assert link.abandoned([lease]) == {"j0"}
    link.finish(lease, RESULT)
    assert link.is_clear
    assert state(queue, "j0") == "cancelled"
    assert "job j0: the result came too late" in caplog.text


def test_an_error_that_is_not_about_the_connection_is_not_swallowed() -> None:
    class BrokenQueue(AwayQueue):
        def emit(self, lease: Lease, event: Event) -> None:
            raise KeyError("what is this?")

    queue = BrokenQueue()
    link = Link(queue, Clock())
    (lease,) = claimed(queue, link)
    with pytest.raises(KeyError):
        link.emit(lease, Started("1"))
