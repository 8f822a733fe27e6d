"""A worker's life: told to stop, hanging, failing, cut off from its queue, losing jobs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from types import UnionType

import pytest

from masc_core.bundle.read import Bundle
from masc_core.errors import EngineError, QueueDownError
from tests.clock import Clock
from tests.tiny_bundle import GRID
from tests.worker.tiny_worker import (
    REQUEST,
    RecordingEngine,
    WatchedQueue,
    engine_of,
    expected,
    failure,
    images,
    make_loop,
    outcomes,
    running,
    submit,
)
from worker import queue_client as client_module
from worker.engine.engine import Engine
from worker.engine.request import EngineOutput, TaskKey
from worker.jobs.job import Event, Job, Lease, Preview, Progress, Started
from worker.jobs.memory import MemoryQueue
from worker.jobs.outcome import EXPIRED, Outcome
from worker.jobs.queue import REQUEUE, JobReport, QueueLimits, WorkerStatus
from worker.model.loaded_version import WARM_UP, PreviewBudget

L = GRID**2


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    idle = {thread for thread in threading.enumerate() if thread.name.startswith("encode")}
    assert set(threading.enumerate()) - idle <= before


def state(queue: MemoryQueue, job_id: str) -> str:
    return asyncio.run(queue.status(job_id)).state


def outcome_of(queue: MemoryQueue, job_id: str) -> Outcome:
    (outcome,) = asyncio.run(outcomes(queue, [job_id]))
    return outcome


def events_of(queue: MemoryQueue, job_id: str) -> list[Event]:
    """What was told of a job that has ended."""

    async def main() -> list[Event]:
        return [numbered.event async for numbered in queue.events(job_id)]

    return asyncio.run(main())


class StoppingEngine(Engine):
    """Calls back in the second step that is not of the warm-up."""

    num_steps = 0

    def step(self) -> Sequence[EngineOutput]:
        if all(task.job_id != WARM_UP for task in self.tasks):
            self.num_steps += 1
            if self.num_steps == 2:
                self.in_second_step()
        return super().step()

    def in_second_step(self) -> None:
        raise NotImplementedError


def test_the_time_to_drain_is_a_bound_and_then_all_is_handed_back(bundle: Bundle) -> None:
    class Engine0(StoppingEngine):
        def in_second_step(self) -> None:
            loop.stop(0.0)
            loop.stop()  # no later than that

    queue = MemoryQueue()
    loop = make_loop(bundle, queue, 4, Engine0)
    asyncio.run(submit(queue, [replace(REQUEST, num_images=16), REQUEST]))
    loop.run()
    stats = asyncio.run(queue.stats())
    assert (stats.depth, stats.running) == (2, 0)
    assert stats.totals.redelivered == {"handed_back": 1}
    assert asyncio.run(queue.workers()) == ()
    assert loop.is_idle
    assert not loop.is_overdue


def test_a_worker_that_is_stopped_is_not_ready_at_once(bundle: Bundle) -> None:
    class Engine0(StoppingEngine):
        def in_second_step(self) -> None:
            loop.stop()
            statuses.extend(asyncio.run(queue.workers()))

    statuses: list[WorkerStatus] = []
    queue = MemoryQueue()
    loop = make_loop(bundle, queue, 4, Engine0)
    (job_id,) = asyncio.run(submit(queue, [REQUEST]))
    loop.run()
    assert [(status.ready, status.detail) for status in statuses] == [(False, "draining")]
    assert state(queue, job_id) == "ok"


def test_a_worker_that_is_stopped_before_it_runs_serves_nobody(bundle: Bundle) -> None:
    queue = WatchedQueue()
    loop = make_loop(bundle, queue)
    (job_id,) = asyncio.run(submit(queue, [REQUEST]))
    loop.stop()
    loop.run()
    assert state(queue, job_id) == "waiting"
    assert not any(status.ready for status in queue._statuses)


def test_a_job_whose_time_is_up_ends_and_frees_its_rows_within_two_steps(bundle: Bundle) -> None:
    queue = MemoryQueue(clock=Clock())  # for which no time passes: only the worker can know
    loop = make_loop(bundle, queue, 4, RecordingEngine)
    job = Job(replace(REQUEST, num_images=2), timeout=1e-6)
    asyncio.run(queue.submit(job))
    loop.step()
    engine = engine_of(loop)
    assert (len(engine.batches), engine.free_rows) == (1, 0)
    loop.step()
    assert (len(engine.batches), engine.free_rows) == (1, 4)
    assert outcome_of(queue, job.id) == EXPIRED
    assert state(queue, job.id) == "expired"
    assert loop.is_idle


@pytest.mark.parametrize("knows", [True, False])
def test_a_job_that_comes_back_to_the_worker_that_lost_it_is_done_once(
    bundle: Bundle, knows: bool
) -> None:
    class LateNewsQueue(MemoryQueue):
        def lost_leases(self, leases: Iterable[Lease]) -> set[str]:
            return super().lost_leases(leases) if knows else set()

    queue = LateNewsQueue()
    loop = make_loop(bundle, queue, 6, RecordingEngine)
    two = replace(REQUEST, num_images=2)
    job = Job(two, previews=True)
    asyncio.run(queue.submit(job))
    for _ in range(GRID + 1):
        loop.step()
    queue.report([(lease, REQUEUE) for lease in loop._queue.leases])  # as if they had run out
    for _ in range(L + 1):  # the second image is rendered in a step of its own
        loop.step()
    outcome = outcome_of(queue, job.id)
    assert [image.data for image in images(outcome)] == expected(bundle, two)
    totals = asyncio.run(queue.stats()).totals
    assert (totals.ended, totals.fenced) == ({"ok": 1}, 0)
    assert events_of(queue, job.id).count(Started("1")) == 2
    assert [len(batch) for batch in engine_of(loop).batches] == [2] * (GRID + 1 + L)
    assert loop.is_idle


class BrokenEngine(Engine):
    """Makes the warm-up image, and nothing else."""

    def step(self) -> Sequence[EngineOutput]:
        if any(task.job_id != WARM_UP for task in self.tasks):
            raise RuntimeError("out of memory")
        return super().step()


def test_a_worker_whose_engine_fails_again_and_again_ends_and_says_so(bundle: Bundle) -> None:
    queue = MemoryQueue()
    loop = make_loop(bundle, queue, 2, BrokenEngine)
    ids = asyncio.run(submit(queue, [REQUEST] * 5))
    with pytest.raises(EngineError, match="the engine fails again and again"):
        loop.run()
    assert [state(queue, job_id) for job_id in ids] == ["error"] * 3 + ["waiting"] * 2
    (status,) = asyncio.run(queue.workers())
    assert (status.ready, status.detail) == (False, "the engine fails again and again")
    loop.stop()  # as the process does in any case
    assert asyncio.run(queue.workers()) == (status,)


def test_errors_with_images_between_them_do_not_end_the_worker(bundle: Bundle) -> None:
    class PoisonedEngine(Engine):
        def step(self) -> Sequence[EngineOutput]:
            if any(task.params.class_id == 4 for task in self.tasks):
                raise RuntimeError("out of memory")
            return super().step()

    async def main() -> None:
        queue = MemoryQueue()
        with running(make_loop(bundle, queue, 2, PoisonedEngine)):
            for _ in range(4):
                bad, good = await submit(queue, [replace(REQUEST, class_id=4), REQUEST])
                assert failure((await outcomes(queue, [bad]))[0]).error == "EngineError"
                assert images((await outcomes(queue, [good]))[0])

    asyncio.run(main())


def test_a_worker_that_cannot_be_cleared_still_hands_its_jobs_back(bundle: Bundle) -> None:
    class LostEngine(StoppingEngine):
        """As on a device that answers every call with an error."""

        def in_second_step(self) -> None:
            self.num_steps -= 1
            raise RuntimeError("unspecified launch failure")

        def cancel(self, key: TaskKey) -> None:
            raise RuntimeError("unspecified launch failure")

    queue = MemoryQueue()
    loop = make_loop(bundle, queue, 6, LostEngine)
    ids = asyncio.run(submit(queue, [REQUEST] * 3))
    with pytest.raises(RuntimeError, match="launch failure"):
        loop.run()
    assert sorted(state(queue, job_id) for job_id in ids) == ["waiting"] * 3
    (status,) = asyncio.run(queue.workers())
    assert not status.ready


class UnspeakableQueue(MemoryQueue):
    """Has an error that nobody foresaw for some reports."""

    def __init__(self, broken: UnionType) -> None:
        super().__init__()
        self._broken = broken

    def report(self, reports: Sequence[JobReport]) -> Sequence[bool]:
        for lease, report in reports:
            if isinstance(report, self._broken) and lease.job.request.class_id == 4:
                raise KeyError("what is this?")
        return super().report(reports)


def test_a_report_that_cannot_be_told_fails_its_job_alone(bundle: Bundle) -> None:
    async def main() -> list[Outcome]:
        queue = UnspeakableQueue(Event)
        jobs = [Job(replace(REQUEST, class_id=i), previews=True) for i in (3, 4, 2)]
        for job in jobs:
            await queue.submit(job)
        with running(make_loop(bundle, queue)):
            return await outcomes(queue, [job.id for job in jobs])

    first, bad, last = asyncio.run(main())
    assert failure(bad).error == "EngineError"
    assert [image.data for image in images(first)] == expected(bundle, replace(REQUEST, class_id=3))
    assert [image.data for image in images(last)] == expected(bundle, REQUEST)


def test_an_outcome_that_can_never_be_reported_ends_the_worker_and_the_rest_goes_back(
    bundle: Bundle,
) -> None:
    queue = UnspeakableQueue(Outcome)
    loop = make_loop(bundle, queue, 4)
    ids = asyncio.run(submit(queue, [replace(REQUEST, class_id=4), replace(REQUEST, num_images=9)]))
    with pytest.raises(EngineError, match="the worker fails again and again"):
        loop.run()
    assert state(queue, ids[1]) == "waiting"
    (status,) = asyncio.run(queue.workers())
    assert (status.ready, status.detail) == (False, "the worker fails again and again")


class AwayQueue(MemoryQueue):
    """A queue that can be away."""

    is_away = False

    def _reach(self) -> None:
        if self.is_away:
            raise QueueDownError("nobody answers")

    def claim(self, model: str, max_rows: int, timeout: float) -> Sequence[Lease]:
        self._reach()
        return super().claim(model, max_rows, timeout)

    def report(self, reports: Sequence[JobReport]) -> Sequence[bool]:
        self._reach()
        return super().report(reports)


def test_a_queue_that_is_away_for_long_loses_no_outcome_and_stops_no_step(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PAUSE_SECONDS", 0.0)
    queue = AwayQueue()
    loop = make_loop(bundle, queue, 6, RecordingEngine)
    engine = engine_of(loop)
    jobs = [Job(replace(REQUEST, num_images=1 + i), previews=True) for i in range(2)]
    for job in jobs:
        asyncio.run(queue.submit(job))
    loop.step()
    queue.is_away = True
    for turn in range(1, L):
        loop.step()
        assert len(engine.batches) == turn + 1
    for _ in range(3):
        loop.step()
    assert not loop._running
    assert not loop.is_idle  # outcomes are still to be reported
    loop.stop()
    assert not loop._is_done
    queue.is_away = False
    loop.step()
    assert loop._is_done
    for job in jobs:
        made = images(outcome_of(queue, job.id))
        assert [image.data for image in made] == expected(bundle, job.request)


def test_a_step_that_hangs_makes_the_worker_not_ready_until_it_ends(bundle: Bundle) -> None:
    go_on = threading.Event()

    class HangingEngine(StoppingEngine):
        def in_second_step(self) -> None:
            assert go_on.wait(30)

    queue = WatchedQueue(QueueLimits(lease_seconds=0.1))
    loop = make_loop(bundle, queue, 4, HangingEngine, stall_seconds=0.3)
    with running(loop):
        (job_id,) = asyncio.run(submit(queue, [REQUEST]))
        status = queue.await_status(lambda status: "no step has ended" in status.detail)
        assert not status.ready
        assert [status.ready for status in loop.statuses] == [False]
        renewals = queue.num_renewals
        assert renewals > 0
        for _ in range(3):
            assert not queue.await_status(lambda _: True).ready
        assert queue.num_renewals == renewals
        go_on.set()
        assert queue.await_status(lambda status: status.ready).detail == ""
        assert images(outcome_of(queue, job_id))


def test_a_job_that_is_watched_tells_how_it_comes_along(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreviewBudget, "pay", lambda self: 0.0)
    queue = MemoryQueue()
    loop = make_loop(bundle, queue, 4)
    watched, other = Job(replace(REQUEST, num_images=2), previews=True), Job(REQUEST)
    for job in (watched, other):
        asyncio.run(queue.submit(job))
    while not loop.is_idle or state(queue, other.id) != "ok":
        loop.step()
    assert events_of(queue, other.id) == []
    events = events_of(queue, watched.id)
    assert events[0] == Started("1")
    for index in range(2):
        told = [e for e in events if isinstance(e, Progress) and e.image == index]
        assert told == [Progress(index, rows, GRID) for rows in range(1, GRID)]
        shown = [e for e in events if isinstance(e, Preview) and e.image == index]
        assert [(e.rows, e.num_rows, e.format) for e in shown] == [
            (rows, GRID, "jpeg") for rows in range(1, GRID)
        ]
        for preview in shown:
            assert events.index(Progress(index, preview.rows, GRID)) < events.index(preview)
    assert events.count(Started("1")) == 1
