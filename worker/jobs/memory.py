"""The queue inside one process: the front end and the worker are two threads of it.

One lock guards everything. A job is in ``_waiting`` until a worker claims it, and in ``_pending``
from its submission until its outcome has been handed out or it was cancelled; nothing else is kept
of it, so memory is bounded by the limit on waiting jobs and by what the workers run.
This module does not know what a job asks for, except how many rows it needs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

from masc_core.errors import QueueFullError
from worker.jobs.job import Job, Outcome, QueueStats, WorkerStatus

WINDOW_SECONDS = 30.0
DEFAULT_RETRY_AFTER = 5.0
MAX_RETRY_AFTER = 120.0


class MemoryQueue:
    """Both faces of the queue port, for one process.

    Parameters
    ----------
    max_jobs : how many jobs may wait; those that a worker has claimed do not count
    """

    def __init__(self, max_jobs: int) -> None:
        self._max_jobs = max_jobs
        self._arrival = threading.Condition()
        self._waiting: dict[str, Job] = {}
        self._pending: dict[str, Future[Outcome]] = {}
        self._workers: dict[str, WorkerStatus] = {}
        self._rate = DrainRate()

    async def submit(self, job: Job) -> None:
        """Accept a job, or raise `QueueFullError` with a ``retry_after`` from the drain rate."""
        with self._arrival:
            depth = len(self._waiting)
            if depth >= self._max_jobs:
                raise QueueFullError(
                    f"{depth} jobs wait already, no more are taken",
                    retry_after(depth, self._rate.per_second()),
                )
            if not self._pending:
                self._rate.restart()
            self._waiting[job.id] = job
            self._pending[job.id] = Future()
            self._arrival.notify()

    async def outcome(self, job_id: str) -> Outcome:
        """Wait for the end of a job; handed out once."""
        with self._arrival:
            future = self._pending[job_id]
        # Shielded: cancelling this wait must not touch the future that the worker will fill.
        outcome = await asyncio.shield(asyncio.wrap_future(future))
        with self._arrival:
            self._pending.pop(job_id, None)
        return outcome

    async def cancel(self, job_id: str) -> None:
        """Drop a job that waits, and discard the outcome of one that runs."""
        with self._arrival:
            self._waiting.pop(job_id, None)
            future = self._pending.pop(job_id, None)
        if future is not None:
            future.cancel()

    async def stats(self) -> QueueStats:
        """State of the queue."""
        with self._arrival:
            head = next(iter(self._waiting.values()), None)
            age = 0.0 if head is None else max(0.0, time.time() - head.submitted_at)
            return QueueStats(len(self._waiting), age, self._rate.per_second())

    async def workers(self) -> Sequence[WorkerStatus]:
        """The latest status of every worker that announced itself and has not left."""
        with self._arrival:
            return tuple(self._workers.values())

    def claim(self, max_rows: int, timeout: float) -> Sequence[Job]:
        """Take the oldest jobs whose rows fit; waits up to ``timeout`` seconds for the first."""
        if max_rows <= 0:
            return ()
        with self._arrival:
            self._arrival.wait_for(lambda: bool(self._waiting), timeout)
            jobs = _leading(self._waiting.values(), max_rows)
            for job in jobs:
                del self._waiting[job.id]
            return jobs

    def finish(self, job_id: str, outcome: Outcome) -> None:
        """Report the end of a job; one that was cancelled or reported before is ignored."""
        with self._arrival:
            self._rate.count()
            future = self._pending.get(job_id)
            if future is not None and not future.done():
                future.set_result(outcome)

    def abandoned(self, job_ids: Iterable[str]) -> set[str]:
        """Those of these claimed jobs that were cancelled, or whose outcome was handed out."""
        with self._arrival:
            return set(job_ids) - self._pending.keys()

    def announce(self, status: WorkerStatus) -> None:
        """Tell the front end how this worker is."""
        with self._arrival:
            self._workers[status.worker_id] = status

    def leave(self, worker_id: str) -> None:
        """Take the worker off the list."""
        with self._arrival:
            self._workers.pop(worker_id, None)


class DrainRate:
    """Jobs finished per second, over the last half minute or since the queue last was empty.

    An idle spell is left out: it says nothing about how fast a full queue drains.

    Parameters
    ----------
    clock : seconds from any origin, never going back
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._finished: deque[float] = deque()
        self._since = clock()

    def restart(self) -> None:
        """Forget what was: the queue was empty, and is not any more."""
        self._finished.clear()
        self._since = self._clock()

    def count(self) -> None:
        """One more job has finished."""
        self._finished.append(self._clock())
        self._forget()

    def per_second(self) -> float:
        """The rate; 0 when nothing has finished."""
        self._forget()
        span = min(WINDOW_SECONDS, self._clock() - self._since)
        return len(self._finished) / max(span, 0.1)

    def _forget(self) -> None:
        horizon = self._clock() - WINDOW_SECONDS
        while self._finished and self._finished[0] < horizon:
            self._finished.popleft()


def retry_after(depth: int, drain_rate: float) -> float:
    """Seconds after which half of a full queue will have drained, so that a new try finds room.

    Between 1 second and two minutes; 5 seconds while the rate is unknown.
    """
    if drain_rate <= 0:
        return DEFAULT_RETRY_AFTER
    return min(max(depth / 2 / drain_rate, 1.0), MAX_RETRY_AFTER)


def _leading(jobs: Iterable[Job], max_rows: int) -> list[Job]:
    """The first jobs that fit together, at least one."""
    taken: list[Job] = []
    for job in jobs:
        if taken and job.request.num_rows > max_rows:
            break
        taken.append(job)
        max_rows -= job.request.num_rows
    return taken
