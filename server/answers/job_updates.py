"""Follow a job to its end: to its result alone, or through every update on the way.

Whatever ends the wait early (the client disconnects, the time is up, the server shuts down) cancels
the job, unless it is kept for others to wait for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from masc_core.errors import DeadlineError, QueueDownError
from server.schemas.job import QueuedEvent
from server.state import AppState
from worker.jobs.job import Job, NumberedEvent
from worker.jobs.outcome import EXPIRED, JobFailure, JobResult
from worker.jobs.queue import JobProducer, JobStatus

POLL_SECONDS = 1.0  # between queries of a waiting job's position

JobUpdate = QueuedEvent | NumberedEvent | JobResult


async def wait_for_result(state: AppState, job: Job, receive: Receive, seconds: float) -> JobResult:
    """Wait for the images of a job; the front end does not end before they are there.

    Parameters
    ----------
    receive : the request's channel, whose body has been read
    seconds : until the request times out

    Raises
    ------
    MascError : why there are no images
    ClientDisconnect : the client disconnected
    """
    outcome = asyncio.ensure_future(state.queue.outcome(job.id))
    disconnect = asyncio.ensure_future(wait_for_disconnect(receive))
    aborted = asyncio.ensure_future(state.drain.until_aborted())
    is_late = False
    with state.drain.working():
        try:
            await asyncio.wait(
                {outcome, disconnect, aborted}, timeout=seconds, return_when="FIRST_COMPLETED"
            )
            if outcome.done():
                result = outcome.result()
                if isinstance(result, JobResult):
                    return result
                if result != EXPIRED:
                    raise result.to_error()
            elif disconnect.done():
                raise ClientDisconnect
            elif aborted.done():
                raise state.drain.error()
            is_late = True
            raise DeadlineError(f"no image within {seconds:g} seconds")
        finally:
            disconnect.cancel()
            aborted.cancel()
            outcome.cancel()
            expired, has_ended = is_late and seconds >= job.timeout, outcome.done()
            await release(state, job, expired=expired, has_ended=has_ended)


async def release(state: AppState, job: Job, *, expired: bool, has_ended: bool = False) -> None:
    """Cancel and forget a job that no request waits for any more.

    Parameters
    ----------
    job : one that is kept goes on, for others may wait for it
    expired : whether its own time is up: it ends even if it is kept
    has_ended : whether its outcome is known, so there is nothing to cancel
    """
    await state.drain.release(_release(state.queue, job, expired=expired, has_ended=has_ended))


async def _release(queue: JobProducer, job: Job, *, expired: bool, has_ended: bool) -> None:
    with suppress(QueueDownError):  # its deadline ends it later
        if not has_ended and (expired or not job.keep):
            await queue.cancel(job.id, "expired" if expired else "cancelled")
        if not job.keep:
            await queue.forget(job.id)


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client of a request, whose body has been read, disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass


def queue_position(status: JobStatus) -> QueuedEvent | None:
    """Position of a job, None if it does not wait.

    The start is when ``position + 1`` jobs have ended at the rate of completion of its model.
    """
    if status.position is None:
        return None
    rate = status.completion_rate
    seconds = round((status.position + 1) / rate, 3) if rate > 0 else None
    return QueuedEvent(position=status.position, estimated_start_seconds=seconds)


async def job_updates(
    queue: JobProducer,
    job_id: str,
    after: int | None = 0,
    until: float = math.inf,
    poll_seconds: float = POLL_SECONDS,
) -> AsyncGenerator[JobUpdate, None]:
    """Follow a job to its images; only the next update is read ahead, for slow readers.

    Parameters
    ----------
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
        updates = _worker_updates(queue, job_id, after, until, poll_seconds)
        async with aclosing(updates):
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
    queue: JobProducer, job_id: str, after: int, until: float, poll_seconds: float
) -> AsyncGenerator[QueuedEvent | NumberedEvent, None]:
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
                    if status.position != position and (waiting := queue_position(status)):
                        position = waiting.position
                        yield waiting
            await _wait(upcoming, poll_seconds if waits else math.inf, until)
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
        if isinstance(events, AsyncGenerator):  # release its resources now, not when collected
            await events.aclose()


async def _wait(
    upcoming: asyncio.Future[NumberedEvent | None], seconds: float, until: float
) -> None:
    """Wait for an event, at most ``seconds``; `DeadlineError` once ``until`` has passed."""
    left = until - asyncio.get_running_loop().time()
    wait = min(seconds, max(left, 0.0))
    await asyncio.wait({upcoming}, timeout=wait if wait < math.inf else None)
    if left <= seconds and not upcoming.done():
        raise _deadline_passed()


def _deadline_passed() -> DeadlineError:
    return DeadlineError("the time that the request was given is up")
