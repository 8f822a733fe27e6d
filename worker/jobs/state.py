"""What is known of a job, of the queue and of its workers, without looking at any image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from worker.jobs.job import Job

EndState = Literal["ok", "error", "cancelled", "expired"]
JobState = Literal["waiting", "running"] | EndState
# Why a job was delivered again: its worker was not heard of, or gave it back.
Redelivery = Literal["lease_expired", "handed_back"]

END_STATES: tuple[EndState, ...] = get_args(EndState)
REDELIVERIES: tuple[Redelivery, ...] = get_args(Redelivery)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a submission.

    Attributes
    ----------
    job_id : the job; an earlier one where the idempotency key was known
    is_new : whether this submission made it
    """

    job_id: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class JobStatus:
    """Where a job is.

    Attributes
    ----------
    job : what was submitted
    state : ``waiting``, ``running``, or how it ended
    position : jobs that are ahead of it, None unless it waits
    deliveries : how often a worker has taken it, without those that gave it back
    """

    job: Job
    state: JobState
    position: int | None
    deliveries: int


@dataclass(frozen=True, slots=True)
class Totals:
    """What has happened in the queue so far. At rest ``accepted`` is the sum of ``ended``."""

    accepted: int = 0
    ended: Mapping[EndState, int] = field(default_factory=dict)
    redelivered: Mapping[Redelivery, int] = field(default_factory=dict)
    dead_lettered: int = 0
    fenced: int = 0


@dataclass(frozen=True, slots=True)
class QueueStats:
    """State of the queue.

    Attributes
    ----------
    depth : jobs that wait for a worker
    running : jobs that a worker has claimed
    oldest_age : seconds since the oldest of those that wait was submitted, 0 when none does
    drain_rate : jobs finished per second of late, 0 when unknown
    totals : since the queue began
    """

    depth: int
    running: int
    oldest_age: float
    drain_rate: float
    totals: Totals


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker announces of itself.

    A worker is ready once a warm-up image has come out of the model it serves. ``refused`` is a
    version that it was told to serve and could not, and ``detail`` why.
    """

    worker_id: str
    ready: bool
    model: str = ""
    version: str = ""
    detail: str = ""
    refused: str = ""
