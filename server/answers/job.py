"""A job as its owner sees it: as JSON, or as server-sent events that can be resumed.

Event ids need no memory here: the worker's events carry their numbers, images their indices, and
the last event its name. The position in the queue has no id, and is sent again to every reader.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

from fastapi.sse import format_sse_event
from pydantic import BaseModel

from masc_core.errors import MascError, QueueDownError, UnknownJobError
from masc_core.escapes import quoted
from server.answers.images import base64_of, image_metadata, model_and_timings, provisional
from server.answers.job_updates import JobUpdate, queue_position
from server.auth.api_keys import Client
from server.errors import Problem, problem_document
from server.schemas.job import (
    DoneEvent,
    ImageEvent,
    JobAnswer,
    JobImage,
    JobRequest,
    PreviewEvent,
    ProgressEvent,
    QueuedEvent,
    StartedEvent,
)
from server.state import AppState
from worker.jobs.job import Job, NumberedEvent, Preview, Progress, Started
from worker.jobs.outcome import ImageOutput, JobFailure, JobResult, Outcome
from worker.jobs.queue import END_STATES, JobProducer, JobStatus

OUTCOME_SECONDS = 3.0  # for transfer: the outcome of a job that has ended is there already


async def own_job_status(queue: JobProducer, client: Client, job_id: str) -> JobStatus:
    """Status of a client's own job; another's is as unknown as one that does not exist."""
    status = await queue.status(job_id)
    # Earlier versions stored the name alone.
    if status.job.owner not in {client.owner, client.name}:
        raise UnknownJobError("id", f"there is no job {quoted(job_id)}")
    return status


async def job_outcome(queue: JobProducer, status: JobStatus) -> Outcome | None:
    """Outcome of a job, None if it has not ended.

    Raises
    ------
    ResultGoneError : it has ended, and its outcome is kept no longer
    QueueDownError : the queue cannot be reached
    """
    if status.state not in END_STATES:
        return None
    try:
        async with asyncio.timeout(OUTCOME_SECONDS):
            return await queue.outcome(status.job.id)
    except TimeoutError:
        raise QueueDownError("the queue cannot be reached", OUTCOME_SECONDS) from None


async def job_answer(state: AppState, status: JobStatus, *, entropies: bool) -> JobAnswer:
    """All that is known of a job; ``entropies`` adds those of every position."""
    job, waiting = status.job, queue_position(status)
    outcome = await job_outcome(state.queue, status)
    url = state.job_url(job.id)
    return JobAnswer(
        id=job.id,
        state=status.state,
        priority=job.priority,
        position=waiting.position if waiting else None,
        estimated_start_seconds=waiting.estimated_start_seconds if waiting else None,
        created=dt.datetime.fromtimestamp(job.submitted_at, dt.UTC),
        timeout=job.timeout,
        request=JobRequest(**dataclasses.asdict(job.request)),
        events=f"{url}/events",
        **_end_fields(job, outcome, url, entropies=entropies),
    )


def _end_fields(job: Job, outcome: Outcome | None, url: str, *, entropies: bool) -> dict[str, Any]:
    if outcome is None:
        return {}
    if isinstance(outcome, JobFailure):
        return {"error": Problem(**problem_document(outcome.to_error()))}
    images = [
        JobImage(
            index=index,
            url=f"{url}/images/{index}",
            **image_metadata(image, job.request.format, entropies=entropies),
        )
        for index, image in enumerate(outcome.images)
    ]
    return {"images": images, **model_and_timings(outcome)}


EVENT_ID: Final = r"^([0-9]{1,9}|image\.[0-9]{1,3}|done|error)?$"


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a reader has read.

    Attributes
    ----------
    after : number of the last worker event it has; None if it has all
    images : number of images it has
    is_at_end : whether it has the last event
    """

    after: int | None = 0
    images: int = 0
    is_at_end: bool = False

    @classmethod
    def from_last_event_id(cls, event_id: str) -> Self:
        """Cursor after the event of an id that matches `EVENT_ID`; empty is the beginning."""
        name, _, index = event_id.partition(".")
        match name:
            case "":
                return cls()
            case "done" | "error":
                return cls(None, is_at_end=True)
            case "image":
                return cls(None, int(index) + 1)
            case number:
                return cls(int(number))


@dataclass(frozen=True, slots=True)
class JobEventEncoder:
    """Encodes the updates of a job.

    Attributes
    ----------
    entropies : whether the images come with the entropy of every position
    first_image : index of the first image to send
    """

    job: Job
    entropies: bool = False
    first_image: int = 0

    def encode(self, update: JobUpdate) -> Iterator[bytes]:
        """One event or, at the end, several."""
        match update:
            case QueuedEvent():
                yield _event("queued", update)
            case NumberedEvent():
                yield self._worker_event(update)
            case JobResult():
                for index, image in enumerate(update.images):
                    if index >= self.first_image:
                        yield self._image(index, image)
                yield _event("done", DoneEvent(id=self.job.id, **model_and_timings(update)), "done")

    def encode_error(self, error: MascError) -> bytes:
        """The last event when there are no images."""
        return _event("error", Problem(**problem_document(error)), "error")

    def _worker_event(self, numbered: NumberedEvent) -> bytes:
        event, number = numbered.event, str(numbered.number)
        match event:
            case Started(version):
                started = StartedEvent(model=self.job.request.model, version=version)
                return _event("started", started, number)
            case Progress(image, rows, num_rows):
                progress = ProgressEvent(image=image, rows=rows, num_rows=num_rows)
                return _event("progress", progress, number)
            case Preview(image, rows, num_rows, file_format, data):
                preview = PreviewEvent(
                    image=image,
                    rows=rows,
                    num_rows=num_rows,
                    format=file_format,
                    **provisional(self.job.request),
                    b64=base64_of(data),
                )
                return _event("preview", preview, number)

    def _image(self, index: int, image: ImageOutput) -> bytes:
        facts = image_metadata(image, self.job.request.format, entropies=self.entropies)
        event = ImageEvent(index=index, **facts, b64=base64_of(image.data))
        return _event("image", event, f"image.{index}")


def _event(name: str, data: BaseModel, event_id: str | None = None) -> bytes:
    content = data.model_dump_json(exclude_unset=True)
    return format_sse_event(data_str=content, event=name, id=event_id)
