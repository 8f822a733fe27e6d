"""A job as its owner sees it."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
from typing import Any

from masc_core.errors import QueueDownError, UnknownJobError
from server.answers.images import image_facts, model_version, stages
from server.answers.queue_position import queue_position
from server.auth.access import Client
from server.errors import problem_document
from server.schemas.job import JobAnswer, JobImage, JobRequest
from server.schemas.problem import Problem
from worker.jobs.job import Job
from worker.jobs.outcome import JobFailure, Outcome
from worker.jobs.queue import JobProducer
from worker.jobs.state import END_STATES, JobStatus

OUTCOME_SECONDS = 3.0  # for a large one to come; that of a job which has ended is there


async def own_job_status(queue: JobProducer, client: Client, job_id: str) -> JobStatus:
    """Where a client's job is.

    Raises
    ------
    UnknownJobError : there is no such job, or it is somebody else's, which is told no otherwise
    """
    status = await queue.status(job_id)
    if status.job.owner != client.name:
        raise UnknownJobError("id", f"there is no job {job_id!r}")
    return status


async def job_outcome(queue: JobProducer, status: JobStatus) -> Outcome | None:
    """How a job has ended, None if it has not.

    Raises
    ------
    ResultGoneError : it has, and nobody knows how any more
    QueueDownError : the queue went away meanwhile
    """
    if status.state not in END_STATES:
        return None
    try:
        async with asyncio.timeout(OUTCOME_SECONDS):
            return await queue.outcome(status.job.id)
    except TimeoutError:
        raise QueueDownError("the queue cannot be reached", OUTCOME_SECONDS) from None


async def job_answer(queue: JobProducer, status: JobStatus, *, entropies: bool) -> JobAnswer:
    """Tell all that is known of a job; ``entropies`` adds those of every position.

    Raises
    ------
    ResultGoneError : as from `job_outcome`
    """
    job, waiting = status.job, await queue_position(queue, status)
    outcome = await job_outcome(queue, status)
    return JobAnswer(
        id=job.id,
        state=status.state,
        position=waiting.position if waiting else None,
        estimated_start_seconds=waiting.start_seconds if waiting else None,
        created=dt.datetime.fromtimestamp(job.submitted_at, dt.UTC),
        timeout=job.timeout,
        request=JobRequest(**dataclasses.asdict(job.request)),
        events=f"/jobs/{job.id}/events",
        **_end(job, outcome, entropies=entropies),
    )


def _end(job: Job, outcome: Outcome | None, *, entropies: bool) -> dict[str, Any]:
    if outcome is None:
        return {}
    if isinstance(outcome, JobFailure):
        return {"error": Problem(**problem_document(outcome.to_error()))}
    images = [
        JobImage(
            index=index,
            url=f"/jobs/{job.id}/images/{index}",
            **image_facts(image, job.request.format, entropies=entropies),
        )
        for index, image in enumerate(outcome.images)
    ]
    return {
        "model": model_version(outcome),
        "images": images,
        "timings": stages(outcome.timings),
    }
