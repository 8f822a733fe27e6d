"""Where a job waits: how many are ahead of it, and when its turn may come."""

from __future__ import annotations

from dataclasses import dataclass

from worker.jobs.queue import JobProducer
from worker.jobs.state import JobStatus


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """A place in the queue.

    Attributes
    ----------
    position : jobs that are ahead
    start_seconds : after which it may start, as the queue drains now; None while that is unknown
    """

    position: int
    start_seconds: float | None


async def queue_position(queue: JobProducer, status: JobStatus) -> QueuePosition | None:
    """Where a job waits, None when it does not.

    Raises
    ------
    QueueDownError : the queue cannot be reached
    """
    if status.position is None:
        return None
    stats = await queue.stats()
    return QueuePosition(status.position, start_seconds(status.position, stats.drain_rate))


def start_seconds(position: int, drain_rate: float) -> float | None:
    """Seconds until one job more has ended than are ahead: this one takes that one's room."""
    if drain_rate <= 0:
        return None
    return round((position + 1) / drain_rate, 3)
