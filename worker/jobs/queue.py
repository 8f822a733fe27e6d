"""The queue port: what a front end and a worker ask of a queue, whatever carries it.

The front end is asynchronous and waits for many jobs at once; a worker is a plain loop that owns
its thread. So the port has two sides, and an adapter serves both.

A job is accepted once, delivered at least once, and ends once. Whoever claims it holds a lease. A
worker that does not renew its leases has lost them; the job is then delivered to another, and what
the first one still reports of it is refused.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, Self, TypeAlias, get_args

from worker.jobs.job import Event, Job, Lease, NumberedEvent
from worker.jobs.outcome import EndState, Outcome
from worker.jobs.priority import Priority

JobState = Literal["waiting", "running"] | EndState
# Why a job was delivered again: its worker was lost, gave it back, or is too old to read it.
Redelivery = Literal["lease_expired", "handed_back", "unreadable"]

END_STATES: tuple[EndState, ...] = get_args(EndState)
REDELIVERIES: tuple[Redelivery, ...] = get_args(Redelivery)

DEFAULT_PREFIX = "masc"
POLL_SECONDS = 1.0
DEFAULT_RETRY_AFTER = 5.0
MAX_RETRY_AFTER = 120.0


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much a queue takes, and how long it waits and remembers."""

    max_jobs: int = 256  # of one model and priority that may wait, without those that are claimed
    lease_seconds: float = 10.0  # after which a silent worker has lost its jobs
    max_deliveries: int = 3  # after so many workers were lost with it, a job is given up
    result_seconds: float = 600.0  # how long an outcome that is kept stays
    max_result_bytes: int = 512 * 2**20  # of kept outcomes; beyond, the oldest are dropped
    tombstone_seconds: float = 86_400.0  # how long afterwards its end and its key are known


@dataclass(frozen=True, slots=True)
class Receipt:
    """The answer to a submission."""

    job_id: str  # an earlier one's where the idempotency key was known
    is_new: bool  # whether this submission made it


@dataclass(frozen=True, slots=True)
class JobStatus:
    """Where a job is."""

    job: Job
    state: JobState
    position: int | None  # jobs that are ahead of it now, None unless it waits
    deliveries: int  # how often a worker has taken it, without those that gave it back
    completion_rate: float = 0.0  # of its model while it waits: jobs per second of late, 0: unknown


@dataclass(frozen=True, slots=True)
class Totals:
    """What has happened in the queue so far. At rest ``accepted`` is the sum of ``ended``."""

    accepted: int = 0
    ended: Mapping[EndState, int] = field(default_factory=dict)
    redelivered: Mapping[Redelivery, int] = field(default_factory=dict)
    dead_lettered: int = 0
    fenced: int = 0
    unreadable: int = 0  # records that were quarantined: damaged, or of another version
    results_dropped: int = 0  # outcomes that went early, because all together were too large


@dataclass(frozen=True, slots=True)
class ModelStats:
    """State of the queue of one model."""

    depth: int = 0  # jobs that wait for a worker
    oldest_age: float = 0.0  # seconds since the oldest that waits was submitted, 0 when none does
    completion_rate: float = 0.0  # jobs finished per second of late, 0 when unknown


@dataclass(frozen=True, slots=True)
class PriorityStats:
    """State of the jobs of one priority."""

    depth: int  # jobs that wait for a worker
    oldest_age: float  # seconds since the oldest that waits was submitted, 0 when none does


@dataclass(frozen=True, slots=True)
class QueueStats:
    """State of the queue."""

    depth: int  # jobs that wait for a worker
    running: int  # jobs that a worker has claimed
    oldest_age: float  # seconds since the oldest that waits was submitted, 0 when none does
    totals: Totals  # since the queue began
    models: Mapping[str, ModelStats] = field(default_factory=dict)  # that it has had jobs of
    priorities: Mapping[Priority, PriorityStats] = field(default_factory=dict)  # all of them

    @property
    def completion_rate(self) -> float:
        """Jobs finished per second of late, of all models; 0 when unknown."""
        return math.fsum(model.completion_rate for model in self.models.values())


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker announces of itself."""

    worker_id: str  # with "/" and the model behind it where the worker serves several
    ready: bool  # once a warm-up image has come out of the model it serves
    model: str = ""
    version: str = ""
    detail: str = ""  # why it is not ready, or why it refused a version
    refused: str = ""  # the active version, if it cannot serve it

    @property
    def process(self) -> str:
        """Name of the worker, the same for all of its models."""
        return self.worker_id.partition("/")[0]

    @property
    def public_detail(self) -> str:
        """The detail without what an error said, which may hold paths and names of hosts."""
        if self.refused:
            return f"refuses version {self.refused}"
        return self.detail.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Requeue:
    """A job goes back unfinished, to be claimed at once by another worker."""


REQUEUE: Final = Requeue()
JobReport: TypeAlias = tuple[Lease, Event | Outcome | Requeue]


class JobProducer(Protocol):
    """The front end's side, an asynchronous context manager: usable between enter and exit.

    Any method raises `QueueDownError` while the queue cannot be reached; `outcome` and `events`
    wait for its return instead.
    """

    async def __aenter__(self) -> Self:
        """Connect."""

    async def __aexit__(self, *_: object) -> None:
        """Disconnect; the jobs stay."""

    async def submit(self, job: Job, share: float = 1.0, weight: float = 1.0) -> Receipt:
        """Accept a job or refuse it, atomically.

        Parameters
        ----------
        job : what to run
        share : of the places of its priority, that jobs of the same owner may take
        weight : rows that the owner gets while others get one each, where all have jobs waiting

        Raises
        ------
        QueueFullError : with a ``retry_after`` from the rate of completion
        ShareExceededError : the owner has as many jobs of the priority waiting as its share allows
        IdempotencyConflictError : the key was used for something else
        """

    async def outcome(self, job_id: str) -> Outcome:
        """Wait for the end of a job. May be asked by many, again and again, at any front end.

        Raises
        ------
        UnknownJobError : there is no such job, or it was forgotten
        ResultGoneError : it has ended, and its outcome is kept no longer
        """

    def events(self, job_id: str, after: int = 0) -> AsyncIterator[NumberedEvent]:
        """Events of a job from number ``after + 1`` on, until it ends; raises as `outcome` does."""

    async def status(self, job_id: str) -> JobStatus:
        """Where a job is; raises `UnknownJobError`."""

    async def cancel(
        self, job_id: str, state: Literal["cancelled", "expired"] = "cancelled"
    ) -> None:
        """End a job without images; one that has ended, or that nobody knows, is ignored.

        It is never claimed any more, and `lost_leases` names it to the worker that runs it.
        """

    async def cancel_all(
        self,
        owner: str,
        priority: Priority | None = None,
        state: Literal["waiting", "running"] | None = None,
    ) -> int:
        """Cancel the jobs of an owner that live now, of one priority or in one state if given.

        Returns
        -------
        how many were cancelled
        """

    async def forget(self, job_id: str) -> None:
        """Keep the outcome no longer, unless the job says `keep`."""

    async def count_request(self, client: str, per_minute: int) -> float:
        """Count a request in its client's window of a minute, which begins with the first one.

        Across the border of two windows twice the number can come within a minute.

        Returns
        -------
        seconds until the next window, 0 for one of the first ``per_minute`` requests
        """

    async def stats(self) -> QueueStats:
        """State of the queue."""

    async def workers(self) -> Sequence[WorkerStatus]:
        """The latest status of every worker that announces one and has not been removed."""


class JobConsumer(Protocol):
    """The worker's side.

    Any method raises `QueueDownError` while the queue cannot be reached.
    """

    lease_seconds: float  # that a lease holds without being renewed
    is_remote: bool  # whether a call waits for a network: no step of a model waits for it then

    @property
    def poll_seconds(self) -> float:
        """After which to claim without an arrival, whose message may be lost."""

    def on_arrival(self, arrived: Callable[[str], None]) -> None:
        """Register a callback for jobs that this worker may get, called with their model's name.

        It is called from any thread, so it must not wait; with an empty name if it may be any
        model. Of a model that has not been claimed there may be no call.
        """

    def claim(self, model: str, max_rows: int, timeout: float) -> Sequence[Lease]:
        """Take the first jobs of a model whose rows fit in ``max_rows``; `fair` has their order.

        Waits up to ``timeout`` seconds for the first. Stops at the first that does not fit, so
        that none is overtaken. The job at the head is handed out even if it alone needs more than
        ``max_rows``, provided that ``max_rows`` is positive: a job larger than a worker is run in
        parts, and never blocks the queue. Without a free row, nothing, at once.

        Jobs that a worker was lost with or gave back have their old places. One with which
        ``max_deliveries`` workers were lost ends with a `PoisonJobError` instead, one whose time is
        up as expired. Of jobs on their last try a worker has one at a time, and the others are
        passed over: if one of them is what kills workers, it cannot take the rest along.
        """

    def renew(self, leases: Iterable[Lease]) -> None:
        """Hold leases for another ``lease_seconds``; from any thread. Those lost stay lost."""

    def lost_leases(self, leases: Iterable[Lease]) -> set[str]:
        """Ids of the jobs among these that were cancelled, ended, or given to another.

        Answers from what is known here, without a round trip, so it can be called at every step.
        """

    def report(self, reports: Sequence[JobReport]) -> Sequence[bool]:
        """Tell what has happened to jobs, in order and all at once.

        An event goes to whoever watches the job, an outcome ends it.

        Returns
        -------
        for each report, whether the lease held: nothing comes of those whose lease was lost
        before, except that outcomes among them are counted
        """

    def announce(self, status: WorkerStatus) -> None:
        """Tell the front ends how this worker is; the status is valid for ``lease_seconds``."""

    def remove_worker(self, worker_id: str) -> None:
        """Take the worker off the list."""

    def close(self) -> None:
        """Disconnect; what is claimed stays so until its leases run out."""


class JobQueue(JobProducer, JobConsumer, Protocol):
    """Both sides."""


def retry_after(depth: int, completion_rate: float) -> float:
    """Seconds after which half of a full queue will have drained, so that a new try finds room.

    Between 1 second and two minutes; 5 seconds while the rate is unknown.
    """
    if completion_rate <= 0:
        return DEFAULT_RETRY_AFTER
    return min(max(depth / 2 / completion_rate, 1.0), MAX_RETRY_AFTER)
