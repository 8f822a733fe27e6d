"""Follow a job: its position in the queue, the events of its worker, its result.

Only the next update is read ahead, so a slow reader holds up nobody.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass

from masc_core.errors import DeadlineError, QueueDownError
from worker.jobs.job import NumberedEvent
from worker.jobs.outcome import JobFailure, JobResult
from worker.jobs.queue import JobProducer, JobStatus


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """The position of a waiting job.

    Attributes
    ----------
    position : number of jobs ahead
    start_seconds : estimated time until it starts; None while unknown
    """

    position: int
    start_seconds: float | None


async def queue_position(queue: JobProducer, status: JobStatus) -> QueuePosition | None:
    """Position of a job, None if it does not wait.

    Raises
    ------
    QueueDownError : the queue cannot be reached
    """
    if status.position is None:
        return None
    stats = await queue.stats()
    return QueuePosition(status.position, start_seconds(status.position, stats.drain_rate))


def start_seconds(position: int, drain_rate: float) -> float | None:
    """Seconds until ``position + 1`` jobs have ended at ``drain_rate`` jobs a second."""
    if drain_rate <= 0:
        return None
    return round((position + 1) / drain_rate, 3)


POLL_SECONDS = 1.0  # between queries of a waiting job's position

JobUpdate = QueuePosition | NumberedEvent | JobResult


async def job_updates(
    queue: JobProducer, job_id: str, after: int | None = 0, until: float = math.inf
) -> AsyncGenerator[JobUpdate, None]:
    """Follow a job to its images.

    Parameters
    ----------
    queue : where the job is
    job_id : the job
    after : number of the last worker event already known; None if all are
    until : deadline, in the event loop's time

    Yields
    ------
    JobUpdate : its position, first and whenever it changes; its worker's events; its result

    Raises
    ------
    MascError : why there are no images
    """
    if after is not None:
        async with aclosing(_worker_updates(queue, job_id, after, until)) as updates:
            async for update in updates:
                yield update
    try:
        async with asyncio.timeout_at(until if until < math.inf else None):
            outcome = await queue.outcome(job_id)
    except TimeoutError:
        raise _deadline_passed() from None
    if isinstance(outcome, JobFailure):
        raise outcome.to_error()
    yield outcome


async def _worker_updates(
    queue: JobProducer, job_id: str, after: int, until: float
) -> AsyncGenerator[QueuePosition | NumberedEvent, None]:
    events = queue.events(job_id, after)
    upcoming = asyncio.ensure_future(anext(events, None))
    position: int | None = None
    waits = True
    try:
        while True:
            if waits and not upcoming.done():
                with suppress(QueueDownError):  # try again at the next poll
                    status = await queue.status(job_id)
                    waits = status.position is not None
                    if status.position != position and (
                        waiting := await queue_position(queue, status)
                    ):
                        position = waiting.position
                        yield waiting
            await _wait(upcoming, POLL_SECONDS if waits else math.inf, until)
            if upcoming.done():
                numbered = upcoming.result()
                if numbered is None:
                    return
                waits = False
                yield numbered
                upcoming = asyncio.ensure_future(anext(events, None))
    finally:
        upcoming.cancel()
        await asyncio.gather(upcoming, return_exceptions=True)
        await _close(events)


async def _wait(
    upcoming: asyncio.Future[NumberedEvent | None], seconds: float, until: float
) -> None:
    """Wait for an event, at most ``seconds``.

    Raises
    ------
    DeadlineError : ``until`` has passed
    """
    left = until - asyncio.get_running_loop().time()
    wait = min(seconds, max(left, 0.0))
    await asyncio.wait({upcoming}, timeout=wait if wait < math.inf else None)
    if left <= seconds and not upcoming.done():
        raise _deadline_passed()


def _deadline_passed() -> DeadlineError:
    return DeadlineError("the time that the request was given is up")


async def _close(events: AsyncIterator[NumberedEvent]) -> None:
    """Release the adapter's resources now, not at garbage collection."""
    if isinstance(events, AsyncGenerator):
        await events.aclose()
