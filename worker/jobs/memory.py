"""The queue inside one process: the front end and the worker are two threads of it.

One lock guards everything. The worker cannot be lost without the queue, so a lease never runs out.
See `worker.jobs.queue` for what the methods do.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict, defaultdict, deque
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
from worker.jobs.fair import FairQueue, QueueTag
from worker.jobs.job import Event, Job, Lease, NumberedEvent
from worker.jobs.outcome import (
    CANCELLED,
    EXPIRED,
    EndState,
    JobFailure,
    JobResult,
    Outcome,
    end_state,
    releases_idempotency_key,
)
from worker.jobs.priority import PRIORITIES, Priority
from worker.jobs.queue import (
    POLL_SECONDS,
    JobConsumer,
    JobReport,
    JobState,
    JobStatus,
    ModelStats,
    PriorityStats,
    QueueLimits,
    QueueStats,
    Receipt,
    Redelivery,
    Requeue,
    Totals,
    WorkerStatus,
    retry_after,
)
from worker.jobs.watchers import Watchers

MAX_TOMBSTONES = 10_000  # jobs that are remembered without their outcomes
RATE_LIMIT_SECONDS = 60.0  # that a client's window for its number of requests lasts
COMPLETION_SECONDS = 30.0  # of the rate of completion


class CompletionRate:
    """Jobs finished per second, over the last half minute or since the queue last was empty.

    An idle spell is left out: it says nothing about how fast a full queue drains.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._finished: deque[float] = deque()
        self._since = clock()

    def restart(self) -> None:
        """The queue was empty, and is not any more: begin anew."""
        self._finished.clear()
        self._since = self._clock()

    def count(self) -> None:
        """One more job has finished."""
        self._finished.append(self._clock())
        self._forget_old()

    def per_second(self) -> float:
        """The rate; 0 when nothing has finished."""
        self._forget_old()
        span = min(COMPLETION_SECONDS, self._clock() - self._since)
        return len(self._finished) / max(span, 0.1)

    def _forget_old(self) -> None:
        horizon = self._clock() - COMPLETION_SECONDS
        while self._finished and self._finished[0] < horizon:
            self._finished.popleft()


@dataclass(slots=True)
class _JobRecord:
    job: Job
    tag: QueueTag
    deadline: float  # of the clock
    state: JobState = "waiting"
    token: int = 0
    deliveries: int = 0
    events: list[Event] = field(default_factory=list)
    outcome: Outcome | None = None
    ended: float = 0.0  # of the clock

    @property
    def model(self) -> str:
        return self.job.request.model

    @property
    def is_over(self) -> bool:
        return self.state not in {"waiting", "running"}


class MemoryQueue(JobConsumer):
    """Both sides of the queue port, for one process; the clock gives monotonic seconds."""

    is_remote = False

    def __init__(
        self, limits: QueueLimits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits, self._clock = limits or QueueLimits(), clock
        self.lease_seconds = self._limits.lease_seconds
        self._arrival = threading.Condition()
        self._listeners: list[Callable[[str], None]] = []
        self._records: dict[str, _JobRecord] = {}
        self._waiting: dict[str, _JobRecord] = {}
        self._order: defaultdict[str, FairQueue] = defaultdict(FairQueue)  # of these, by model
        self._running: dict[str, _JobRecord] = {}
        self._ended: OrderedDict[str, _JobRecord] = OrderedDict()  # with outcomes; the oldest first
        self._tombstones: OrderedDict[str, _JobRecord] = OrderedDict()  # without them
        self._by_key: dict[tuple[str, str], _JobRecord] = {}
        self._workers: dict[str, WorkerStatus] = {}
        self._windows: dict[tuple[str, int], tuple[float, int]] = {}  # begin, and requests so far
        self._watchers = Watchers()
        self._rates: dict[str, CompletionRate] = {}  # by model
        self._accepted, self._fenced, self._results_dropped = 0, 0, 0
        self._result_bytes = 0  # of all outcomes in ``_ended`` that are kept
        self._ends: Counter[EndState] = Counter()
        self._redelivered: Counter[Redelivery] = Counter()

    async def __aenter__(self) -> Self:
        """Nothing to connect."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to disconnect."""

    async def submit(self, job: Job, share: float = 1.0, weight: float = 1.0) -> Receipt:
        """Accept a job."""
        with self._arrival:
            self._sweep()
            earlier = self._same_key(job)
            if earlier is not None:
                return Receipt(earlier.job.id, is_new=False)
            self._rates.setdefault(job.request.model, CompletionRate(self._clock))
            self._check_limits(job, share)
            self._restart_idle_rate(job.request.model)
            tag = self._order[job.request.model].add(job, weight)
            record = _JobRecord(job, tag, self._clock() + job.timeout)
            self._records[job.id] = self._waiting[job.id] = record
            if job.idempotency is not None:
                self._by_key[job.owner, job.idempotency.key] = record
            self._accepted += 1
            self._notify_workers(record)
            return Receipt(job.id, is_new=True)

    async def outcome(self, job_id: str) -> Outcome:
        """Wait for the end of a job."""
        with self._watchers.watch(job_id) as changed:
            while True:
                with self._arrival:
                    record = self._record(job_id)
                    if record.is_over:
                        return _outcome_of(record)
                await changed.wait(record.deadline - self._clock())

    async def events(self, job_id: str, after: int = 0) -> AsyncIterator[NumberedEvent]:
        """Events of a job."""
        with self._watchers.watch(job_id) as changed:
            while True:
                with self._arrival:
                    record = self._record(job_id)
                    is_over, fresh = record.is_over, record.events[after:]
                    if is_over:
                        _outcome_of(record)
                for event in fresh:
                    after += 1
                    yield NumberedEvent(after, event)
                if is_over:
                    return
                await changed.wait(record.deadline - self._clock())

    async def status(self, job_id: str) -> JobStatus:
        """Where a job is."""
        with self._arrival:
            record = self._record(job_id)
            position, rate = None, 0.0
            if record.state == "waiting":
                position = self._order[record.model].position(record.tag, record.job.priority)
                rate = self._rates[record.model].per_second()
            return JobStatus(record.job, record.state, position, record.deliveries, rate)

    async def cancel(
        self, job_id: str, state: Literal["cancelled", "expired"] = "cancelled"
    ) -> None:
        """End a job without images."""
        with self._arrival:
            record = self._records.get(job_id)
            if record is not None and not record.is_over:
                self._end(record, CANCELLED if state == "cancelled" else EXPIRED)

    async def cancel_all(
        self,
        owner: str,
        priority: Priority | None = None,
        state: Literal["waiting", "running"] | None = None,
    ) -> int:
        """Cancel an owner's jobs."""
        with self._arrival:
            self._sweep()
            own = [
                record
                for record in reversed((*self._running.values(), *self._waiting.values()))
                if record.job.owner == owner
                and priority in {None, record.job.priority}
                and state in {None, record.state}
            ]
            for record in own:
                self._end(record, CANCELLED)
            return len(own)

    async def forget(self, job_id: str) -> None:
        """Keep the outcome no longer, unless the job says so."""
        with self._arrival:
            record = self._records.get(job_id)
            if record is not None and record.is_over and not record.job.keep:
                self._drop(record)

    async def count_request(self, client: str, per_minute: int) -> float:
        """Count a request in its client's window of a minute."""
        with self._arrival:
            now = self._clock()
            began, number = self._windows.get((client, per_minute), (now, 0))
            if now - began >= RATE_LIMIT_SECONDS:
                began, number = now, 0
            self._windows[client, per_minute] = began, number + 1
            return 0.0 if number < per_minute else began + RATE_LIMIT_SECONDS - now

    async def stats(self) -> QueueStats:
        """State of the queue."""
        with self._arrival:
            self._sweep()
            priorities = {priority: self._priority_stats(priority) for priority in PRIORITIES}
            age = max(stats.oldest_age for stats in priorities.values())
            totals = Totals(
                self._accepted,
                dict(self._ends),
                dict(self._redelivered),
                fenced=self._fenced,
                results_dropped=self._results_dropped,
            )
            models = {name: self._model_stats(name) for name in self._rates}
            depth, running = len(self._waiting), len(self._running)
            return QueueStats(depth, running, age, totals, models, priorities)

    async def workers(self) -> Sequence[WorkerStatus]:
        """The latest status of every worker."""
        with self._arrival:
            return tuple(self._workers.values())

    @property
    def poll_seconds(self) -> float:
        """Arrivals are never missed here; the value only bounds the wait."""
        return POLL_SECONDS

    def on_arrival(self, arrived: Callable[[str], None]) -> None:
        """Register a callback for a job that begins to wait; it must not call the queue."""
        with self._arrival:
            self._listeners.append(arrived)

    def claim(self, model: str, max_rows: int, timeout: float) -> Sequence[Lease]:
        """Take the next jobs, in fair order, that fit."""
        if max_rows <= 0:
            return ()
        with self._arrival:
            self._arrival.wait_for(lambda: len(self._order[model]) > 0, timeout)
            self._sweep()
            taken = self._order[model].take(max_rows)
            return [self._lease(self._waiting[job_id]) for job_id in taken]

    def renew(self, leases: Iterable[Lease]) -> None:
        """Leases do not run out."""

    def lost_leases(self, leases: Iterable[Lease]) -> set[str]:
        """Ids of the jobs among these that are over, or somebody else's."""
        with self._arrival:
            self._sweep()
            return {lease.job_id for lease in leases if not self._holds(lease)}

    def report(self, reports: Sequence[JobReport]) -> Sequence[bool]:
        """Tell what has happened to jobs."""
        with self._arrival:
            return [self._apply(lease, report) for lease, report in reports]

    def announce(self, status: WorkerStatus) -> None:
        """Tell the front end how this worker is."""
        with self._arrival:
            self._workers[status.worker_id] = status

    def remove_worker(self, worker_id: str) -> None:
        """Take the worker off the list."""
        with self._arrival:
            self._workers.pop(worker_id, None)

    def close(self) -> None:
        """Nothing to disconnect."""

    def _same_key(self, job: Job) -> _JobRecord | None:
        """The job that was submitted earlier under the same idempotency key."""
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

    def _check_limits(self, job: Job, share: float) -> None:
        order = self._order[job.request.model]
        depth, own = order.depth(job.priority), order.depth_of(job)
        wait = retry_after(depth, self._rates[job.request.model].per_second())
        if depth >= self._limits.max_jobs:
            raise QueueFullError(f"{depth} jobs wait already, no more are taken", wait)
        if share < 1 and own >= max(1, int(share * self._limits.max_jobs)):
            raise ShareExceededError(f"{own} jobs of this client wait already", wait)

    def _restart_idle_rate(self, model: str) -> None:
        """Begin the rate of a model anew where none of its jobs waits or runs."""
        live = (*self._waiting.values(), *self._running.values())
        if all(record.model != model for record in live):
            self._rates[model].restart()

    def _model_stats(self, model: str) -> ModelStats:
        jobs = [record.job for record in self._waiting.values() if record.model == model]
        return ModelStats(len(jobs), _oldest_age(jobs), self._rates[model].per_second())

    def _priority_stats(self, priority: Priority) -> PriorityStats:
        jobs = [one.job for one in self._waiting.values() if one.job.priority == priority]
        return PriorityStats(len(jobs), _oldest_age(jobs))

    def _record(self, job_id: str) -> _JobRecord:
        self._sweep()
        try:
            return self._records[job_id]
        except KeyError:
            raise UnknownJobError("id", f"there is no job {job_id!r}") from None

    def _lease(self, record: _JobRecord) -> Lease:
        del self._waiting[record.job.id]
        self._running[record.job.id] = record
        record.state = "running"
        record.token += 1
        record.deliveries += 1
        return Lease(record.job, record.token, record.deadline - self._clock())

    def _notify_workers(self, record: _JobRecord) -> None:
        self._arrival.notify_all()
        for arrived in self._listeners:
            arrived(record.model)

    def _apply(self, lease: Lease, report: Event | Outcome | Requeue) -> bool:
        """Apply a report; false when the lease was lost before."""
        if not self._holds(lease):
            self._fenced += isinstance(report, Outcome)
            return False
        record = self._running[lease.job_id]
        match report:
            case Requeue():
                self._requeue(record)
            case JobResult() | JobFailure():
                self._rates[record.job.request.model].count()
                self._end(record, report)
            case event:
                record.events.append(event)
                self._watchers.notify(lease.job_id)
        return True

    def _requeue(self, record: _JobRecord) -> None:
        """Put a running job back at its old place."""
        del self._running[record.job.id]
        record.state = "waiting"
        record.deliveries -= 1
        self._redelivered["handed_back"] += 1
        self._waiting[record.job.id] = record
        self._order[record.model].put(record.tag, record.job.priority)
        self._notify_workers(record)

    def _holds(self, lease: Lease) -> bool:
        record = self._running.get(lease.job_id)
        return record is not None and record.token == lease.token

    def _end(self, record: _JobRecord, outcome: Outcome) -> None:
        if self._waiting.pop(record.job.id, None) is not None:
            self._order[record.model].remove(record.tag, record.job.priority)
        self._running.pop(record.job.id, None)
        record.state, record.outcome = end_state(outcome), outcome
        record.ended = self._clock()
        self._ends[record.state] += 1
        if record.job.keep:
            self._make_room(_num_bytes(outcome))
        self._ended[record.job.id] = record
        if releases_idempotency_key(outcome):
            self._release_key(record)
        self._watchers.notify(record.job.id)

    def _make_room(self, size: int) -> None:
        """Count an outcome that is kept; bury the oldest of such where it is too much."""
        self._result_bytes += size
        if self._result_bytes <= self._limits.max_result_bytes:
            return
        for job_id in [key for key, record in self._ended.items() if record.job.keep]:
            self._bury(job_id)
            self._results_dropped += 1
            if self._result_bytes <= self._limits.max_result_bytes:
                return

    def _sweep(self) -> None:
        """End what has no time left, and forget what has been kept long enough."""
        now, limits = self._clock(), self._limits
        for record in (*self._waiting.values(), *self._running.values()):
            if record.deadline <= now:
                self._end(record, EXPIRED)
        while self._ended and now - _oldest(self._ended).ended >= limits.result_seconds:
            self._bury(next(iter(self._ended)))
        while self._tombstones and (
            now - _oldest(self._tombstones).ended >= limits.tombstone_seconds
            or len(self._tombstones) > MAX_TOMBSTONES
        ):
            self._drop(_oldest(self._tombstones))

    def _bury(self, job_id: str) -> None:
        """Keep the outcome of a job no longer."""
        record = self._ended.pop(job_id)
        if record.job.keep:
            self._result_bytes -= _num_bytes(record.outcome)
        record.outcome, record.events = None, []
        self._tombstones[job_id] = record

    def _drop(self, record: _JobRecord) -> None:
        if record.job.id in self._ended:
            self._bury(record.job.id)
        for records in (self._records, self._tombstones):
            records.pop(record.job.id, None)
        self._release_key(record)

    def _release_key(self, record: _JobRecord) -> None:
        if record.job.idempotency is None:
            return
        key = record.job.owner, record.job.idempotency.key
        if self._by_key.get(key) is record:
            del self._by_key[key]


def _num_bytes(outcome: Outcome | None) -> int:
    return sum(len(image.data) for image in outcome.images) if isinstance(outcome, JobResult) else 0


def _oldest_age(jobs: Sequence[Job]) -> float:
    """Seconds since the oldest of these was submitted; 0 without one."""
    now = time.time()
    return max(0.0, now - min((job.submitted_at for job in jobs), default=now))


def _outcome_of(record: _JobRecord) -> Outcome:
    if record.outcome is None:
        raise ResultGoneError("id", f"the images of job {record.job.id!r} are kept no longer")
    return record.outcome


def _oldest(records: OrderedDict[str, _JobRecord]) -> _JobRecord:
    return next(iter(records.values()))
