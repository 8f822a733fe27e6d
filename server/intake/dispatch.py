"""Through the queue and back: the time limit, admission, and the wait for the result.

Whatever ends the wait early (the client disconnects, the time is up, the server shuts down) cancels
the job, unless it is kept for others to wait for.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Final

from fastapi import Header
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from masc_core.errors import CapacityError, DeadlineError, InvalidFieldError, QueueDownError
from server.errors import problem_type_of
from server.intake.idempotency import mark_replay
from server.middleware.tracing import traceparent_of
from server.state import AppState
from worker.jobs.job import Job
from worker.jobs.outcome import EXPIRED, JobResult
from worker.jobs.queue import JobProducer

logger = logging.getLogger(__name__)

HEADER: Final = "X-Masc-Timeout"

TimeoutHeader = Annotated[
    float | None,
    Header(
        alias=HEADER,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which the images are no longer wanted; by default, and at most, "
        "the service's own limit.",
    ),
]


def time_limit(given: float | None, most: float) -> float:
    """Time limit of a request in seconds; ``most`` is the maximum and the default.

    Raises
    ------
    InvalidFieldError : more was asked for
    """
    if given is None:
        return most
    if given > most:
        raise InvalidFieldError(HEADER, f"must be at most {most:g} seconds here")
    return given


async def admit(state: AppState, job: Job, share: float, scope: Scope) -> Job:
    """Put a job into the queue.

    Parameters
    ----------
    front : the front end
    job : to submit
    share : largest share of the queue for its owner's waiting jobs
    scope : the request, which is marked as a replay if it was sent before

    Returns
    -------
    Job : this one, or the earlier one with the same idempotency key

    Raises
    ------
    CapacityError : no worker is ready for its model, the queue is full, or this front end drains
    IdempotencyConflictError : the key belongs to another request
    """
    job = replace(job, trace=traceparent_of(scope))
    try:
        state.drain.check()
        await state.ready_workers(job.request.model)
        receipt = await state.queue.submit(job, share)
    except CapacityError as error:
        reason = problem_type_of(error).slug.replace("-", "_")
        state.metrics.rejections.labels(reason).inc()
        raise
    logger.info("job %s of %s", receipt.job_id, job.owner)
    if receipt.is_new:
        return job
    mark_replay(scope)
    return (await state.queue.status(receipt.job_id)).job


async def wait_for_result(state: AppState, job: Job, receive: Receive, seconds: float) -> JobResult:
    """Wait for the images of a job; the front end does not end before they are there.

    Parameters
    ----------
    front : the front end
    job : as admitted
    receive : the request's channel, whose body has been read
    seconds : until the request times out

    Raises
    ------
    MascError : why the job failed
    ClientDisconnect : the client disconnected
    DeadlineError : the time is up
    """
    with state.drain.working():
        return await _wait_for_result(state.queue, job, receive, seconds)


async def _wait_for_result(
    queue: JobProducer, job: Job, receive: Receive, seconds: float
) -> JobResult:
    outcome = asyncio.ensure_future(queue.outcome(job.id))
    disconnect = asyncio.ensure_future(wait_for_disconnect(receive))
    is_late = False
    try:
        await asyncio.wait({outcome, disconnect}, timeout=seconds, return_when="FIRST_COMPLETED")
        if outcome.done():
            result = outcome.result()
            if isinstance(result, JobResult):
                return result
            if result != EXPIRED:
                raise result.to_error()
        elif disconnect.done():
            raise ClientDisconnect
        is_late = True
        raise DeadlineError(f"no image within {seconds:g} seconds")
    finally:
        disconnect.cancel()
        outcome.cancel()
        expired, has_ended = is_late and seconds >= job.timeout, outcome.done()
        await release(queue, job, expired=expired, has_ended=has_ended)


async def release(queue: JobProducer, job: Job, *, expired: bool, has_ended: bool = False) -> None:
    """Cancel and forget a job that no request waits for any more.

    Parameters
    ----------
    queue : where it is
    job : one that is kept goes on, for others may wait for it
    expired : whether its own time is up: it ends even if it is kept
    has_ended : whether its outcome is known, so there is nothing to cancel
    """
    with suppress(QueueDownError):  # its deadline ends it later
        if not has_ended and (expired or not job.keep):
            await queue.cancel(job.id, "expired" if expired else "cancelled")
        if not job.keep:
            await queue.forget(job.id)


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client of a request, whose body has been read, disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
