"""What becomes of a job, moment by moment: where it waits, what its worker tells, how it ends.

Nothing is read ahead but the next moment, so whoever reads slowly holds up nobody and nothing.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress

from masc_core.errors import DeadlineError, QueueDownError
from server.answers.queue_position import QueuePosition, queue_position
from worker.jobs.event import NumberedEvent
from worker.jobs.outcome import JobFailure, JobResult
from worker.jobs.queue import JobProducer

POLL_SECONDS = 1.0  # between two looks at the place of a job that waits

JobUpdate = QueuePosition | NumberedEvent | JobResult


async def job_updates(
    queue: JobProducer, job_id: str, after: int | None = 0, until: float = math.inf
) -> AsyncGenerator[JobUpdate, None]:
    """Follow a job to its images.

    Parameters
    ----------
    queue : where the job is
    job_id : the job
    after : number of the worker's last event that is known already; None if all are
    until : the loop's time at which to give up

    Yields
    ------
    Moment : its place, at once if it waits and whenever it changes; its worker's events; its result

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
                with suppress(QueueDownError):  # it will be back
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
    """Wait for an event, for so long at most.

    Raises
    ------
    DeadlineError : the time to give up has come
    """
    left = until - asyncio.get_running_loop().time()
    wait = min(seconds, max(left, 0.0))
    await asyncio.wait({upcoming}, timeout=wait if wait < math.inf else None)
    if left <= seconds and not upcoming.done():
        raise _deadline_passed()


def _deadline_passed() -> DeadlineError:
    return DeadlineError("the time that the request was given is up")


async def _close(events: AsyncIterator[NumberedEvent]) -> None:
    """Let go of what an adapter holds for the events now, not when they are collected."""
    if isinstance(events, AsyncGenerator):
        await events.aclose()
