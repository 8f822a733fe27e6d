"""The queue inside one process: the front end and the worker are two threads of it.

One lock guards everything. A job is kept until `forget`, or for `QueueLimits.result_seconds` after
its end; then its id and state stay for `QueueLimits.tombstone_seconds`, or until there are too many
others. The worker cannot be lost without the queue, so a lease never runs out.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from masc_core.errors import (
    IdempotencyConflictError,
    QueueFullError,
    ResultGoneError,
    ShareExceededError,
    UnknownJobError,
)
from worker.jobs.drain_rate import DrainRate, retry_after
from worker.jobs.event import Event, NumberedEvent
from worker.jobs.job import Job, Lease
from worker.jobs.limits import QueueLimits
from worker.jobs.outcome import (
    CANCELLED,
    EXPIRED,
    JobFailure,
    JobResult,
    Outcome,
    end_state,
    frees_key,
)
from worker.jobs.queue import HandBack, JobConsumer, JobReport
from worker.jobs.state import (
    EndState,
    JobState,
    JobStatus,
    QueueStats,
    Receipt,
    Redelivery,
    Totals,
    WorkerStatus,
)
from worker.jobs.watchers import Watchers

MAX_GONE = 10_000  # jobs that are remembered without their outcomes


@dataclass(slots=True)
class _Record:
    """What is known of a job."""

    job: Job
    number: int  # in the order of acceptance
    deadline: float  # of the clock
    state: JobState = "waiting"
    token: int = 0
    deliveries: int = 0
    events: list[Event] = field(default_factory=list)
    outcome: Outcome | None = None
    ended: float = 0.0  # of the clock

    @property
    def is_over(self) -> bool:
        return self.state not in {"waiting", "running"}


class MemoryQueue(JobConsumer):
    """Both faces of the queue port, for one process.

    Parameters
    ----------
    limits : how much it takes and remembers
    clock : seconds from any origin, never going back
    """

    def __init__(
        self, limits: QueueLimits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits, self._clock = limits or QueueLimits(), clock
        self._arrival = threading.Condition()
        self._listeners: list[Callable[[str], None]] = []
        self._records: dict[str, _Record] = {}
        self._waiting: OrderedDict[str, _Record] = OrderedDict()
        self._running: dict[str, _Record] = {}
        self._kept: OrderedDict[str, _Record] = OrderedDict()  # ended; the oldest first
        self._gone: OrderedDict[str, _Record] = OrderedDict()  # the same without outcomes
        self._by_key: dict[tuple[str, str], _Record] = {}
        self._workers: dict[str, WorkerStatus] = {}
        self._watchers = Watchers()
        self._rate = DrainRate(clock)
        self._accepted, self._fenced = 0, 0
        self._ends: Counter[EndState] = Counter()
        self._redelivered: Counter[Redelivery] = Counter()

    async def __aenter__(self) -> Self:
        """Nothing is to be connected."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is to be disconnected."""

    async def submit(self, job: Job, share: float = 1.0) -> Receipt:
        """Accept a job; see `worker.jobs.queue.JobProducer.submit`."""
        with self._arrival:
            self._sweep()
            earlier = self._earlier(job)
            if earlier is not None:
                return Receipt(earlier.job.id, is_new=False)
            self._refuse_excess(job, share)
            if not self._waiting and not self._running:
                self._rate.restart()
            record = _Record(job, self._accepted, self._clock() + job.timeout)
            self._records[job.id] = self._waiting[job.id] = record
            if job.idempotency is not None:
                self._by_key[job.owner, job.idempotency.key] = record
            self._accepted += 1
            self._has_arrived(record)
            return Receipt(job.id, is_new=True)

    async def outcome(self, job_id: str) -> Outcome:
        """Wait for the end of a job; see `worker.jobs.queue.JobProducer.outcome`."""
        with self._watchers.watch(job_id) as news:
            while True:
                with self._arrival:
                    record = self._record(job_id)
                    if record.is_over:
                        return _kept(record)
                await news.wait(record.deadline - self._clock())

    async def events(self, job_id: str, after: int = 0) -> AsyncIterator[NumberedEvent]:
        """What the job's worker tells; see `worker.jobs.queue.JobProducer.events`."""
        with self._watchers.watch(job_id) as news:
            while True:
                with self._arrival:
                    record = self._record(job_id)
                    is_over, fresh = record.is_over, record.events[after:]
                    if is_over:
                        _kept(record)
                for event in fresh:
                    after += 1
                    yield NumberedEvent(after, event)
                if is_over:
                    return
                await news.wait(record.deadline - self._clock())

    async def status(self, job_id: str) -> JobStatus:
        """Where a job is."""
        with self._arrival:
            record = self._record(job_id)
            position = None
            if record.state == "waiting":
                ahead = [one.job.request.model for one in self._waiting.values()]
                ahead = ahead[: list(self._waiting).index(job_id)]
                position = ahead.count(record.job.request.model)
            return JobStatus(record.job, record.state, position, record.deliveries)

    async def cancel(
        self, job_id: str, state: Literal["cancelled", "expired"] = "cancelled"
    ) -> None:
        """End a job without images."""
        with self._arrival:
            record = self._records.get(job_id)
            if record is not None and not record.is_over:
                self._end(record, CANCELLED if state == "cancelled" else EXPIRED)

    async def forget(self, job_id: str) -> None:
        """Keep the outcome of a job no longer, unless it is to be kept."""
        with self._arrival:
            record = self._records.get(job_id)
            if record is not None and record.is_over and not record.job.keep:
                self._drop(record)

    async def stats(self) -> QueueStats:
        """State of the queue."""
        with self._arrival:
            self._sweep()
            head = next(iter(self._waiting.values()), None)
            age = 0.0 if head is None else max(0.0, time.time() - head.job.submitted_at)
            totals = Totals(
                self._accepted, dict(self._ends), dict(self._redelivered), fenced=self._fenced
            )
            rate = self._rate.per_second()
            return QueueStats(len(self._waiting), len(self._running), age, rate, totals)

    async def workers(self) -> Sequence[WorkerStatus]:
        """The latest status of every worker that announced itself and has not left."""
        with self._arrival:
            return tuple(self._workers.values())

    @property
    def lease_seconds(self) -> float:
        """How long a lease would hold elsewhere."""
        return self._limits.lease_seconds

    @property
    def is_remote(self) -> bool:
        """Nothing is waited for but a lock."""
        return False

    def on_arrival(self, arrived: Callable[[str], None]) -> None:
        """Have it called when a job begins to wait; it must not call the queue."""
        with self._arrival:
            self._listeners.append(arrived)

    def claim(self, model: str, max_rows: int, timeout: float) -> Sequence[Lease]:
        """Take the oldest jobs that fit; see `worker.jobs.queue.JobConsumer.claim`."""
        if max_rows <= 0:
            return ()
        with self._arrival:
            self._arrival.wait_for(lambda: bool(self._of(model)), timeout)
            self._sweep()
            return [self._lease(record) for record in _leading(self._of(model), max_rows)]

    def renew(self, leases: Iterable[Lease]) -> None:
        """Nothing is to be renewed."""

    def abandoned(self, leases: Iterable[Lease]) -> set[str]:
        """Ids of the jobs among these that are over, or somebody else's."""
        with self._arrival:
            self._sweep()
            return {lease.job_id for lease in leases if not self._holds(lease)}

    def report(self, reports: Sequence[JobReport]) -> Sequence[bool]:
        """Tell what has happened to jobs; see `worker.jobs.queue.JobConsumer.report`."""
        with self._arrival:
            return [self._take(lease, report) for lease, report in reports]

    def announce(self, status: WorkerStatus) -> None:
        """Tell the front end how this worker is."""
        with self._arrival:
            self._workers[status.worker_id] = status

    def remove_worker(self, worker_id: str) -> None:
        """Take the worker off the list."""
        with self._arrival:
            self._workers.pop(worker_id, None)

    def close(self) -> None:
        """Nothing is to be disconnected."""

    def _earlier(self, job: Job) -> _Record | None:
        """The job that an idempotency key stands for already."""
        if job.idempotency is None:
            return None
        record = self._by_key.get((job.owner, job.idempotency.key))
        if record is None or record.job.idempotency is None:
            return None
        if record.job.idempotency.fingerprint != job.idempotency.fingerprint:
            raise IdempotencyConflictError(
                "Idempotency-Key", "the idempotency key was used for another request"
            )
        return record

    def _refuse_excess(self, job: Job, share: float) -> None:
        waiting = self._of(job.request.model)
        wait = retry_after(len(waiting), self._rate.per_second())
        if len(waiting) >= self._limits.max_jobs:
            raise QueueFullError(f"{len(waiting)} jobs wait already, no more are taken", wait)
        own = sum(record.job.owner == job.owner for record in waiting)
        if share < 1 and own >= max(1, int(share * self._limits.max_jobs)):
            raise ShareExceededError(f"{own} jobs of this client wait already", wait)

    def _of(self, model: str) -> list[_Record]:
        return [one for one in self._waiting.values() if one.job.request.model == model]

    def _record(self, job_id: str) -> _Record:
        self._sweep()
        try:
            return self._records[job_id]
        except KeyError:
            raise UnknownJobError("id", f"there is no job {job_id!r}") from None

    def _lease(self, record: _Record) -> Lease:
        del self._waiting[record.job.id]
        self._running[record.job.id] = record
        record.state = "running"
        record.token += 1
        record.deliveries += 1
        return Lease(record.job, record.token, record.deadline - self._clock())

    def _has_arrived(self, record: _Record) -> None:
        self._arrival.notify_all()
        for arrived in self._listeners:
            arrived(record.job.request.model)

    def _take(self, lease: Lease, report: Event | Outcome | HandBack) -> bool:
        """Do what a report says; false when the lease was lost before."""
        if not self._holds(lease):
            self._fenced += isinstance(report, Outcome)
            return False
        record = self._running[lease.job_id]
        match report:
            case HandBack():
                self._give_back(record)
            case JobResult() | JobFailure():
                self._rate.count()
                self._end(record, report)
            case event:
                record.events.append(event)
                self._watchers.notify(lease.job_id)
        return True

    def _give_back(self, record: _Record) -> None:
        """Back to its old place, ahead of all that no worker has had yet."""
        del self._running[record.job.id]
        record.state = "waiting"
        record.deliveries -= 1
        self._redelivered["handed_back"] += 1
        waiting = sorted([*self._waiting.values(), record], key=lambda one: one.number)
        self._waiting = OrderedDict((one.job.id, one) for one in waiting)
        self._has_arrived(record)

    def _holds(self, lease: Lease) -> bool:
        record = self._running.get(lease.job_id)
        return record is not None and record.token == lease.token

    def _end(self, record: _Record, outcome: Outcome) -> None:
        self._waiting.pop(record.job.id, None)
        self._running.pop(record.job.id, None)
        record.state, record.outcome = end_state(outcome), outcome
        record.ended = self._clock()
        self._ends[record.state] += 1
        self._kept[record.job.id] = record
        if frees_key(outcome):
            self._release_key(record)
        self._watchers.notify(record.job.id)

    def _sweep(self) -> None:
        """End what has no time left, and forget what has been kept long enough."""
        now, limits = self._clock(), self._limits
        for record in (*self._waiting.values(), *self._running.values()):
            if record.deadline <= now:
                self._end(record, EXPIRED)
        while self._kept and now - _oldest(self._kept).ended >= limits.result_seconds:
            job_id, record = self._kept.popitem(last=False)
            record.outcome, record.events = None, []
            self._gone[job_id] = record
        while self._gone and (
            now - _oldest(self._gone).ended >= limits.tombstone_seconds
            or len(self._gone) > MAX_GONE
        ):
            self._drop(_oldest(self._gone))

    def _drop(self, record: _Record) -> None:
        for place in (self._records, self._kept, self._gone):
            place.pop(record.job.id, None)
        self._release_key(record)

    def _release_key(self, record: _Record) -> None:
        """Let the idempotency key stand for nothing."""
        if record.job.idempotency is None:
            return
        key = record.job.owner, record.job.idempotency.key
        if self._by_key.get(key) is record:
            del self._by_key[key]


def _kept(record: _Record) -> Outcome:
    if record.outcome is None:
        raise ResultGoneError("id", f"the images of job {record.job.id!r} are kept no longer")
    return record.outcome


def _oldest(records: OrderedDict[str, _Record]) -> _Record:
    return next(iter(records.values()))


def _leading(records: Iterable[_Record], max_rows: int) -> list[_Record]:
    """The first jobs that fit together, at least one."""
    taken: list[_Record] = []
    for record in records:
        if taken and record.job.request.num_rows > max_rows:
            break
        taken.append(record)
        max_rows -= record.job.request.num_rows
    return taken
