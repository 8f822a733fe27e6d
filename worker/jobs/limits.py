"""How much a queue takes, and how long it waits and remembers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What an adapter is told.

    Attributes
    ----------
    max_jobs : of one model that may wait; those that a worker has claimed do not count
    lease_seconds : after which a worker that was not heard of has lost its jobs
    max_deliveries : after so many workers were lost with it, a job is no longer delivered
    result_seconds : how long an outcome that is kept stays
    tombstone_seconds : how long it is known afterwards that there was one, and an idempotency key
    """

    max_jobs: int = 256
    lease_seconds: float = 10.0
    max_deliveries: int = 3
    result_seconds: float = 600.0
    tombstone_seconds: float = 86_400.0
