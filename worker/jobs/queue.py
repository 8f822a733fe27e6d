"""The queue port: what a front end and a worker ask of a queue, whatever carries it.

The front end is asynchronous and waits for many jobs at once; a worker is a plain loop that owns
its thread. So the port has two faces, and an adapter serves both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from worker.jobs.job import Job, Outcome, QueueStats, WorkerStatus


class JobProducer(Protocol):
    """The front end's side."""

    async def submit(self, job: Job) -> None:
        """Accept a job, or raise `QueueFullError` with a ``retry_after`` from the drain rate."""

    async def outcome(self, job_id: str) -> Outcome:
        """Wait for the end of a job that this front end submitted; handed out once.

        A wait that is itself cancelled may be taken up again.

        Raises
        ------
        KeyError : never submitted here, cancelled, or handed out already
        """

    async def cancel(self, job_id: str) -> None:
        """Give a job up: it is dropped if it still waits, and its outcome is discarded.

        Whoever still waits for the outcome gets an ``asyncio.CancelledError``. A job that ended, or
        that nobody knows, is ignored.
        """

    async def stats(self) -> QueueStats:
        """State of the queue."""

    async def workers(self) -> Sequence[WorkerStatus]:
        """The latest status of every worker that announced itself and has not left."""


class JobConsumer(Protocol):
    """The worker's side."""

    def claim(self, max_rows: int, timeout: float) -> Sequence[Job]:
        """Take the oldest jobs whose rows fit in ``max_rows``, in order of submission.

        Waits up to ``timeout`` seconds for the first. Stops at the first that does not fit, so
        that none is overtaken. The job at the head is handed out even if it alone needs more than
        ``max_rows``, provided that ``max_rows`` is positive: a job larger than a worker is run in
        parts, and never blocks the queue. Without a free row, nothing, at once.
        """

    def finish(self, job_id: str, outcome: Outcome) -> None:
        """Report the end of a job; one that was cancelled or reported before is ignored."""

    def abandoned(self, job_ids: Iterable[str]) -> set[str]:
        """Those of these claimed jobs for which nobody waits any more: their work is in vain.

        Each of them was cancelled, or ended before.
        """

    def announce(self, status: WorkerStatus) -> None:
        """Tell the front ends how this worker is."""

    def leave(self, worker_id: str) -> None:
        """Take the worker off the list."""


class JobQueue(JobProducer, JobConsumer, Protocol):
    """Both faces."""
