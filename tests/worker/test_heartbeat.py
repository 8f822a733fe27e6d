"""The heartbeat: a loop that hangs or is to end is not ready, whoever says so last."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest

from masc_core.errors import EngineError, QueueDownError
from tests.clock import Clock
from worker.heartbeat import Heartbeat
from worker.jobs.job import GenerationRequest, Job, Lease
from worker.jobs.memory import MemoryQueue
from worker.jobs.queue import QueueLimits, WorkerStatus

LEASES = [Lease(Job(GenerationRequest("tiny", 0, 1.0, 0), id="j"), 1, 60.0)]
READY = WorkerStatus("w1", ready=True, model="tiny", version="1")
STALL_SECONDS = 30.0


class RecordingQueue(MemoryQueue):
    """Remembers what is renewed; counts announcements."""

    def __init__(self, lease_seconds: float = 10.0) -> None:
        super().__init__(QueueLimits(lease_seconds=lease_seconds))
        self.renewed: list[str] = []
        self.is_away = False
        self.error: Exception | None = None
        self.announced = threading.Semaphore(0)

    def renew(self, leases: Iterable[Lease]) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self.renewed += [lease.job_id for lease in leases]

    def announce(self, status: WorkerStatus) -> None:
        try:
            if self.is_away:
                raise QueueDownError("away")
            super().announce(status)
        finally:
            self.announced.release()


def make_heartbeat(queue: RecordingQueue, clock: Clock | None = None) -> Heartbeat:
    return Heartbeat(queue, ["w1"], lambda: LEASES, STALL_SECONDS, clock or Clock())


def workers(queue: MemoryQueue) -> Sequence[WorkerStatus]:
    return asyncio.run(queue.workers())


def test_leases_are_renewed_and_the_status_is_told_anew_as_long_as_the_loop_turns() -> None:
    queue, clock = RecordingQueue(), Clock()
    heartbeat = make_heartbeat(queue, clock)
    heartbeat.announce(READY)
    for turn in range(1, 4):
        clock.now += STALL_SECONDS
        heartbeat.beat()
        clock.now += STALL_SECONDS  # not yet too long
        queue.remove_worker("w1")
        heartbeat.check()
        assert queue.renewed == ["j"] * turn
        assert workers(queue) == (READY,)


def test_a_loop_that_hangs_is_not_ready_and_renews_nothing_until_it_turns_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue, clock = RecordingQueue(), Clock()
    heartbeat = make_heartbeat(queue, clock)
    heartbeat.announce(READY)
    heartbeat.beat()
    clock.now += STALL_SECONDS + 1
    for _ in range(2):
        heartbeat.check()
        (status,) = workers(queue)
        assert status == replace(READY, ready=False, detail="no step has ended for 31 s")
        assert heartbeat.statuses == [status]
    assert queue.renewed == []
    heartbeat.announce(replace(READY, version="2"))  # nor by what the loop says before it turns
    assert [status.ready for status in workers(queue)] == [False]
    heartbeat.beat()
    heartbeat.check()
    assert queue.renewed == ["j"]
    assert workers(queue) == (replace(READY, version="2"),)
    said = [record.message for record in caplog.records]
    assert said == [
        "no step has ended for 31.0 s: the worker is not ready",
        "the loop has resumed",
    ]


def test_a_loop_that_has_not_turned_yet_cannot_hang() -> None:
    queue, clock = RecordingQueue(), Clock()
    heartbeat = make_heartbeat(queue, clock)
    clock.now += 1000  # the warm-up
    heartbeat.check()
    assert queue.renewed == ["j"]
    assert [status.detail for status in workers(queue)] == [""]


def test_whatever_the_loop_says_while_it_drains_the_worker_is_not_ready() -> None:
    queue = RecordingQueue()
    heartbeat = make_heartbeat(queue)
    heartbeat.announce(READY)
    heartbeat.drain()
    assert workers(queue) == (replace(READY, ready=False, detail="draining"),)
    heartbeat.announce(replace(READY, version="2"))  # it had not heard of it yet
    assert workers(queue) == (replace(READY, ready=False, version="2", detail="draining"),)
    heartbeat.check()
    assert [status.ready for status in workers(queue)] == [False]
    broken = replace(READY, ready=False, detail="the engine fails")
    heartbeat.announce(broken)  # a better reason
    assert workers(queue) == (broken,)


def test_at_the_end_the_worker_leaves_and_is_not_heard_of_again() -> None:
    queue = RecordingQueue()
    with make_heartbeat(queue) as heartbeat:
        heartbeat.announce(READY)
        assert workers(queue) == (READY,)
    assert workers(queue) == ()
    heartbeat.drain()
    heartbeat.announce(READY)
    assert workers(queue) == ()


def test_a_worker_that_failed_stays_with_its_reason() -> None:
    queue = RecordingQueue()
    broken = replace(READY, ready=False, detail="the engine fails")
    heartbeat = make_heartbeat(queue)
    with suppress(EngineError), heartbeat:
        heartbeat.announce(broken)
        raise EngineError("broken")
    heartbeat.drain()
    assert workers(queue) == (broken,)


def test_a_worker_that_failed_without_a_word_is_not_ready() -> None:
    queue = RecordingQueue()
    heartbeat = make_heartbeat(queue)
    with suppress(EngineError), heartbeat:
        heartbeat.announce(READY)
        raise EngineError("broken")
    assert workers(queue) == (replace(READY, ready=False, detail="failed, see the log"),)


def test_it_beats_by_itself_thrice_a_lease() -> None:
    queue = RecordingQueue(lease_seconds=0.03)
    with make_heartbeat(queue):
        for _ in range(3):
            assert queue.announced.acquire(timeout=10)
    assert queue.renewed[:3] == ["j"] * 3


def test_a_queue_that_is_away_does_not_stop_it() -> None:
    queue = RecordingQueue(lease_seconds=0.03)
    queue.is_away = True
    with make_heartbeat(queue) as heartbeat:
        heartbeat.announce(READY)
        for _ in range(3):
            assert queue.announced.acquire(timeout=10)
        assert workers(queue) == ()
        queue.is_away = False
        for _ in range(2):  # the first may have begun before
            assert queue.announced.acquire(timeout=10)
        assert workers(queue) == (READY,)


def test_an_error_that_nobody_foresaw_does_not_end_it(caplog: pytest.LogCaptureFixture) -> None:
    queue = RecordingQueue(lease_seconds=0.03)
    queue.error = KeyError("what is this?")
    with make_heartbeat(queue):
        for _ in range(2):
            assert queue.announced.acquire(timeout=10)
    assert queue.renewed[:1] == ["j"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_every_model_of_a_worker_is_told_of_until_its_end() -> None:
    queue, clock = RecordingQueue(), Clock()
    names = ["w1/a", "w1/b"]
    a, b = (replace(READY, worker_id=name, model=name[-1]) for name in names)
    broken = replace(b, ready=False, detail="refused")
    with Heartbeat(queue, names, lambda: LEASES, STALL_SECONDS, clock) as heartbeat:
        heartbeat.announce(a)
        heartbeat.announce(broken)
        queue.remove_worker("w1/a")
        heartbeat.check()
        assert sorted(workers(queue), key=str) == sorted((a, broken), key=str)
        heartbeat.drain()
        assert {one.model: one.detail for one in workers(queue)} == {
            "a": "draining",
            "b": "refused",
        }
    assert workers(queue) == ()
