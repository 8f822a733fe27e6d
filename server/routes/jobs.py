"""``/jobs``: images that nobody waits for, and what becomes of them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from masc_core.errors import ForbiddenError, QueueDownError
from server.answers.event_stream import EventStream, sse_events, unless_aborted
from server.answers.images import BINARY, IMAGE_HEADERS, cached_response, image_headers
from server.answers.job import (
    EVENT_ID,
    Cursor,
    JobEventEncoder,
    job_answer,
    job_outcome,
    own_job_status,
)
from server.answers.job_updates import job_updates
from server.auth.dependencies import ClientDependency, LimitedClientDependency
from server.intake.accept import EVENTS, MEDIA_TYPES
from server.intake.admit import TimeoutHeader, admit, resolve, time_limit
from server.intake.idempotency import REPLAY_HEADER, IdempotencyKey, idempotency
from server.intake.json_body import json_body
from server.middleware.tracing import stage
from server.openapi import (
    SUBMIT_ERRORS,
    Responses,
    described_headers,
    event_stream,
    json_request,
    problems,
)
from server.routes.generate import EXAMPLES as GENERATE_EXAMPLES
from server.schemas.job import (
    EVENT_MODELS,
    EXAMPLE_EVENTS,
    EXAMPLE_JOB,
    CancelAnswer,
    JobAnswer,
    JobBody,
)
from server.state import State
from worker.jobs.job import Job
from worker.jobs.outcome import JobResult
from worker.jobs.priority import Priority
from worker.jobs.queue import JobStatus

router = APIRouter(prefix="/jobs", tags=["jobs"])

JobId = Annotated[str, Path(alias="id", max_length=100, description="Id of the job.")]
Entropies = Annotated[bool, Query(description="Add the entropy of every position.")]
LastEventId = Annotated[
    str | None,
    Header(
        alias="Last-Event-ID",
        pattern=EVENT_ID,
        description="Id of the last event that has arrived; a browser sends it by itself.",
    ),
]
LastEventQuery = Annotated[
    str | None,
    Query(pattern=EVENT_ID, description="The same, for who cannot send the header."),
]

JOB = {"application/json": {"examples": {"it waits": {"value": EXAMPLE_JOB}}}}
ACCEPTED: Responses = {
    202: {
        "model": JobAnswer,
        "description": "The job is in the queue.",
        "content": JOB,
        "headers": described_headers({"Location": "Path of the job.", **REPLAY_HEADER}),
    }
}
JOB_RESPONSE: Responses = {200: {"model": JobAnswer, "content": JOB}}
IMAGE: Responses = {
    200: {
        "description": "The file.",
        "content": dict.fromkeys(MEDIA_TYPES.values(), BINARY),
        "headers": described_headers({"ETag": "Strong ETag of the file.", **IMAGE_HEADERS}),
    },
    304: {"description": "Not modified."},
}
STREAMED: Responses = {
    200: {
        "description": "The events, up to the last one.",
        "content": {EVENTS: event_stream(EVENT_MODELS, EXAMPLE_EVENTS)},
    },
    204: {"description": "The stream has ended; do not reconnect."},
}
SUBMIT_PROBLEMS = problems(*SUBMIT_ERRORS)
PROBLEMS = problems("no-key", "unknown-job", "result-gone", "invalid", "queue-down")


@router.post(
    "",
    status_code=202,
    summary="Generate images later",
    responses=ACCEPTED | SUBMIT_PROBLEMS,
    openapi_extra=json_request(
        JobBody, {name: GENERATE_EXAMPLES[name] for name in ("by name", "by id")}
    ),
)
async def submit(
    request: Request,
    state: State,
    client: LimitedClientDependency,
    body: Annotated[JobBody, Depends(json_body(JobBody))],
    given_seconds: TimeoutHeader = None,
    key: IdempotencyKey = None,
) -> Response:
    """Put a job into the queue, and leave it there."""
    with stage(state.metrics, request.scope, "admit"):
        job = await admit(
            state,
            request.scope,
            client,
            Job(
                resolve(body, await state.manifest(body.model), "png"),
                timeout=time_limit(given_seconds, state.settings.job_timeout),
                keep=True,
                previews=body.previews,
                idempotency=idempotency(key, router.prefix, body, ""),
                priority=client.priority_of(body.priority, "batch"),
            ),
        )
    try:
        status = await state.queue.status(job.id)
        answer = await job_answer(state, status, entropies=False)
    except QueueDownError:  # it has been accepted all the same, and can be asked for later
        unknown = JobStatus(job, "waiting", None, 0)
        answer = await job_answer(state, unknown, entropies=False)
    return _document(answer, 202, Location=state.job_url(job.id))


@router.get(
    "/{id}",
    name="look",  # a part of the operation's id, which generated clients know
    summary="Status and results of a job",
    responses=JOB_RESPONSE | PROBLEMS,
)
async def show(
    job_id: JobId, state: State, client: ClientDependency, *, entropies: Entropies = False
) -> Response:
    """Tell how many jobs are ahead of it, or how it ended; its images are fetched one by one."""
    status = await own_job_status(state.queue, client, job_id)
    return _document(await job_answer(state, status, entropies=entropies))


@router.delete(
    "/{id}",
    status_code=204,
    summary="Cancel a job",
    responses=problems("no-key", "unknown-job", "invalid", "queue-down"),
)
async def cancel(job_id: JobId, state: State, client: ClientDependency) -> None:
    """End a job that waits or runs; one that has ended stays as it is."""
    await own_job_status(state.queue, client, job_id)
    await state.queue.cancel(job_id)


@router.delete(
    "",
    summary="Cancel all of one's jobs",
    responses=problems("no-key", "no-keys", "invalid", "rate-limit", "queue-down"),
)
async def cancel_all(
    owner: Annotated[Literal["me"], Query(description="Whose: those of the key that asks.")],  # noqa: ARG001 - said, so that nobody cancels all by a slip
    state: State,
    client: LimitedClientDependency,
    priority: Annotated[Priority | None, Query(description="Only those of a priority.")] = None,
    in_state: Annotated[
        Literal["waiting", "running"] | None,
        Query(alias="state", description="Only those in a state."),
    ] = None,
) -> CancelAnswer:
    """End all jobs of the key that wait or run, also those that requests wait for."""
    if not client.key:
        raise ForbiddenError("without keys nobody's jobs can be told from another's")
    return CancelAnswer(cancelled=await state.queue.cancel_all(client.owner, priority, in_state))


@router.get(
    "/{id}/images/{index}",
    summary="An image of a job",
    response_class=Response,
    responses=IMAGE | PROBLEMS,
)
async def image(
    request: Request,
    job_id: JobId,
    index: Annotated[int, Path(ge=0, description="Which one, from 0.")],
    state: State,
    client: ClientDependency,
) -> Response:
    """Fetch the file; there is none before the job has ended well."""
    status = await own_job_status(state.queue, client, job_id)
    result = await job_outcome(state.queue, status)
    if not isinstance(result, JobResult):
        raise HTTPException(404, f"the job has no images: its state is {status.state!r}")
    if index >= len(result.images):
        raise HTTPException(404, f"the job has images 0 to {len(result.images) - 1}")
    media_type = MEDIA_TYPES[status.job.request.format]
    headers, data = image_headers(result, index), result.images[index].data
    return cached_response(request, data, media_type, "private, no-cache", headers)


@router.get(
    "/{id}/events",
    summary="Stream a job's events",
    response_class=Response,
    responses=STREAMED | PROBLEMS,
)
async def events(
    request: Request,
    job_id: JobId,
    state: State,
    client: ClientDependency,
    last_id: LastEventId = None,
    last_event_id: LastEventQuery = None,
    *,
    entropies: Entropies = False,
) -> Response:
    """Stream a job's events from the first to the last.

    Reconnecting with `Last-Event-ID` resumes behind that event; disconnecting does not cancel the
    job.
    """
    await request.body()  # so that the next message is http.disconnect
    status = await own_job_status(state.queue, client, job_id)
    await job_outcome(state.queue, status)  # what is kept no longer is no stream
    cursor = Cursor.from_last_event_id(last_id or last_event_id or "")
    if cursor.is_at_end:
        return Response(status_code=204)
    encoder = JobEventEncoder(status.job, entropies=entropies, first_image=cursor.images)
    updates = job_updates(state.queue, job_id, cursor.after)
    events = sse_events(unless_aborted(updates, state.drain), encoder)
    return EventStream(events, drain=state.drain)


def _document(answer: JobAnswer, status: int = 200, **headers: str) -> Response:
    content = answer.model_dump_json(exclude_unset=True)
    headers = {"Cache-Control": "no-store", **headers}
    return Response(content, status, headers, "application/json")
