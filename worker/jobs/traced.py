"""A queue whose jobs are traced: when one ends, its stages go into the trace of its request.

The stages lie one behind the other, as long as the job's timings say. With several images they
overlap in truth, and encoding counts each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from worker.jobs.job import Job, Lease
from worker.jobs.outcome import JobFailure, Outcome
from worker.jobs.queue import JobConsumer, JobReport
from worker.jobs.stages import Stage
from worker.jobs.state import WorkerStatus
from worker.jobs.tracing import Tracer

STAGES: Final[tuple[Stage, ...]] = ("queue", "prefill", "decode", "vq_decode", "encode")


class TracedQueue(JobConsumer):
    """The worker's side of a queue, unchanged but for the traces.

    Parameters
    ----------
    queue : where jobs come from and outcomes go
    tracer : makes the spans
    """

    def __init__(self, queue: JobConsumer, tracer: Tracer) -> None:
        self._queue, self._tracer = queue, tracer

    @property
    def lease_seconds(self) -> float:
        """How long a lease holds without being renewed."""
        return self._queue.lease_seconds

    @property
    def is_remote(self) -> bool:
        """Whether a call waits for a network."""
        return self._queue.is_remote

    def on_arrival(self, arrived: Callable[[str], None]) -> None:
        """Have it called when there may be jobs."""
        self._queue.on_arrival(arrived)

    def claim(self, model: str, max_rows: int, timeout: float) -> Sequence[Lease]:
        """Take jobs."""
        return self._queue.claim(model, max_rows, timeout)

    def renew(self, leases: Iterable[Lease]) -> None:
        """Hold leases."""
        self._queue.renew(leases)

    def abandoned(self, leases: Iterable[Lease]) -> set[str]:
        """Ids of the jobs that are no longer this worker's."""
        return self._queue.abandoned(leases)

    def report(self, reports: Sequence[JobReport]) -> Sequence[bool]:
        """Tell what has happened to jobs, and trace those whose end the queue takes."""
        now = time.time()  # before others learn of it, so that no job outlasts its request
        answers = self._queue.report(reports)
        for (lease, report), is_accepted in zip(reports, answers, strict=True):
            if is_accepted and isinstance(report, Outcome):
                trace_job(self._tracer, lease.job, report, now)
        return answers

    def announce(self, status: WorkerStatus) -> None:
        """Tell the front ends how this worker is."""
        self._queue.announce(status)

    def remove_worker(self, worker_id: str) -> None:
        """Take the worker off the list."""
        self._queue.remove_worker(worker_id)

    def close(self) -> None:
        """Disconnect."""
        self._queue.close()


def trace_job(tracer: Tracer, job: Job, outcome: Outcome, ended: float) -> None:
    """Record a job from its submission to its end, seconds since the epoch."""
    span = tracer.start(
        "job",
        job.trace,
        "consumer",
        job.submitted_at,
        masc__job__id=job.id,
        masc__model__name=job.request.model,
        masc__images=job.request.num_images,
    )
    if isinstance(outcome, JobFailure):
        span.end(outcome.error, ended)
        return
    at = job.submitted_at
    for stage in STAGES:
        end = at + getattr(outcome.timings, stage)
        span.add(stage, at, end)
        at = end
    span.end(at=ended, masc__model__version=outcome.version)
