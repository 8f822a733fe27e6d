"""``POST /generate``: from a class to images, in one request."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.answers.event_stream import stream_generation
from server.answers.images import BINARY, IMAGE_HEADERS, image_headers, json_response
from server.answers.job import JobEventEncoder
from server.answers.job_updates import wait_for_result
from server.auth.dependencies import LimitedClientDependency
from server.intake.accept import EVENTS, MEDIA_TYPES, image_format, wants_events
from server.intake.admit import TimeoutHeader, admit, resolve, time_limit
from server.intake.idempotency import REPLAY_HEADER, IdempotencyKey, idempotency
from server.intake.json_body import json_body
from server.middleware.tracing import stage
from server.openapi import (
    SUBMIT_ERRORS,
    WAIT_ERRORS,
    Responses,
    described_headers,
    event_stream,
    json_request,
    problems,
)
from server.schemas.generate import (
    EXAMPLE_ANSWER,
    EXAMPLE_REQUEST,
    GenerateAnswer,
    GenerateBody,
)
from server.schemas.job import EVENT_MODELS, EXAMPLE_EVENTS
from server.state import State
from worker.jobs.job import Job

router = APIRouter(tags=["images"])

ENDPOINT = "/generate"
RESPONSE: Responses = {
    200: {
        "model": GenerateAnswer,
        "description": "The images; as a file if one was wanted and `Accept` asks for an image.",
        "content": {
            "application/json": {"examples": {"one image": {"value": EXAMPLE_ANSWER}}},
            **dict.fromkeys(MEDIA_TYPES.values(), BINARY),
            EVENTS: event_stream(EVENT_MODELS, EXAMPLE_EVENTS),
        },
        "headers": described_headers({**IMAGE_HEADERS, **REPLAY_HEADER}),
    }
}
PROBLEMS = problems(*WAIT_ERRORS, *SUBMIT_ERRORS)
EXAMPLES = {
    "by name": EXAMPLE_REQUEST,
    "by id": {"class_id": 1, "num_images": 4, "temperature": 0.9, "top_p": 0.95, "format": "webp"},
    "as it is drawn": {"class_id": 1, "stream": True},
}


@router.post(
    ENDPOINT,
    summary="Generate images of a class",
    responses=RESPONSE | PROBLEMS,
    openapi_extra=json_request(GenerateBody, EXAMPLES),
)
async def generate(
    request: Request,
    state: State,
    client: LimitedClientDependency,
    body: Annotated[GenerateBody, Depends(json_body(GenerateBody))],
    given_seconds: TimeoutHeader = None,
    key: IdempotencyKey = None,
) -> Response:
    """Make images and wait for them.

    The same request with the same seed gives the same bytes, whatever else the service does. A
    client that disconnects ends its job, unless it gave an `Idempotency-Key`.
    """
    accept = ",".join(request.headers.getlist("accept"))
    streams = body.stream or wants_events(accept)
    accepted_format = image_format(accept)
    with stage(state.metrics, request.scope, "admit"):
        seconds = time_limit(given_seconds, state.settings.request_timeout)
        response_kind = EVENTS if streams else accepted_format or ""
        job = await admit(
            state,
            request.scope,
            client,
            Job(
                resolve(body, await state.manifest(body.model), accepted_format or "png"),
                timeout=seconds,
                keep=key is not None,
                previews=streams,
                idempotency=idempotency(key, ENDPOINT, body, response_kind),
                priority=client.priority_of(body.priority, "interactive"),
            ),
        )
    if streams:
        encoder = JobEventEncoder(job, entropies=body.entropies)
        return stream_generation(state, request.scope, job, encoder, seconds)
    result = await wait_for_result(state, job, request.receive, seconds)
    with stage(state.metrics, request.scope, "deliver"):
        file_format = job.request.format
        if accepted_format and len(result.images) == 1:
            headers = {**image_headers(result, 0), "Vary": "Accept"}
            media_type = MEDIA_TYPES[file_format]
            return Response(result.images[0].data, headers=headers, media_type=media_type)
        return json_response(job.id, result, file_format, entropies=body.entropies)
