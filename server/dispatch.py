"""Through the queue and back: admission, and the wait for the outcome.

Whatever ends the wait before its time (the client goes away, the time is up, the server shuts
down), the job is cancelled, so none is left behind.
"""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from masc_core.errors import CapacityError
from server.front import Front
from server.problems import kind_of
from worker.jobs.job import Job, JobFailure, JobResult
from worker.jobs.queue import JobProducer


async def admit(front: Front, job: Job) -> None:
    """Put a job into the queue.

    Raises
    ------
    CapacityError : no worker is ready for its model, or the queue is full
    """
    try:
        await front.ready_workers(job.request.model)
        await front.queue.submit(job)
    except CapacityError as error:
        reason = kind_of(error).slug.replace("-", "_")
        front.metrics.rejections.labels(reason).inc()
        raise


async def wait(queue: JobProducer, job_id: str, receive: Receive, timeout: float) -> JobResult:  # noqa: ASYNC109 - more than one thing ends the wait
    """Wait for the images of a job.

    Parameters
    ----------
    queue : where the job is
    job_id : the job
    receive : the request's channel, whose body has been read; tells when the client goes away
    timeout : seconds

    Raises
    ------
    MascError : why the job failed
    ClientDisconnect : the client went away
    HTTPException : 504, the time is up
    """
    outcome = asyncio.ensure_future(queue.outcome(job_id))
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({outcome, gone}, timeout=timeout, return_when="FIRST_COMPLETED")
        if outcome.done():
            result = outcome.result()
            if isinstance(result, JobFailure):
                raise result.to_error()
            return result
        if gone.done():
            raise ClientDisconnect
        raise HTTPException(504, f"no image within {timeout:g} seconds")
    finally:
        gone.cancel()
        if not outcome.done():
            outcome.cancel()
            await queue.cancel(job_id)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
