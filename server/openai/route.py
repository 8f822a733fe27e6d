"""``/v1``: for programs that speak to the OpenAI Images API."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.sse import format_sse_event
from starlette.responses import Response

from masc_core.bundle.manifest import Defaults, Manifest
from masc_core.errors import InvalidFieldError, MascError, UnknownModelError
from server.answers.event_stream import stream_generation
from server.answers.images import base64_of, provisional
from server.answers.job_updates import JobUpdate, wait_for_result
from server.auth.dependencies import LimitedClientDependency
from server.intake.accept import EVENTS
from server.intake.admit import TimeoutHeader, admit, resolve, time_limit
from server.intake.idempotency import REPLAY_HEADER, IdempotencyKey, idempotency
from server.intake.json_body import json_body
from server.middleware.tracing import stage
from server.openai.errors import PREFIX, openai_error, openai_problems
from server.openai.schemas import (
    EXAMPLE_BODY,
    EXAMPLE_DRAWN,
    CompletedEvent,
    OpenAIAnswer,
    OpenAIBody,
    OpenAIErrorAnswer,
    OpenAIImage,
    OpenAIModel,
    OpenAIModelList,
    PartialImageEvent,
    TokenDetails,
    Usage,
)
from server.openapi import (
    SUBMIT_ERRORS,
    WAIT_ERRORS,
    Responses,
    described_headers,
    event_stream,
    json_request,
)
from server.routes.models import served_manifests
from server.schemas.generate import ImagesBody
from server.state import AppState, State
from worker.jobs.job import Job, NumberedEvent, Preview
from worker.jobs.outcome import ImageOutput, JobResult

router = APIRouter(tags=["OpenAI"])

ENDPOINT = "/v1/images/generations"
SHARED = (*Defaults.model_fields, "seed", "model", "priority")
RESPONSE: Responses = {
    200: {
        "model": OpenAIAnswer,
        "description": "The images.",
        "headers": described_headers(REPLAY_HEADER),
        "content": {
            "application/json": {"examples": {"two images": {"value": EXAMPLE_DRAWN}}},
            EVENTS: event_stream(
                {
                    "image_generation.partial_image": PartialImageEvent,
                    "image_generation.completed": CompletedEvent,
                    "error": OpenAIErrorAnswer,
                },
                'event: error\ndata: {"error":{"message":"the job was cancelled"}}\n\n',
            ),
        },
    }
}
PROBLEMS = openai_problems(*WAIT_ERRORS, *SUBMIT_ERRORS)


@router.post(
    ENDPOINT,
    summary="Generate images as the OpenAI Images API does",
    responses=RESPONSE | PROBLEMS,
    openapi_extra=json_request(OpenAIBody, {"two ships": EXAMPLE_BODY}),
)
async def generations(
    request: Request,
    state: State,
    client: LimitedClientDependency,
    body: Annotated[OpenAIBody, Depends(json_body(OpenAIBody))],
    given_seconds: TimeoutHeader = None,
    key: IdempotencyKey = None,
) -> Response:
    """Make images of the class that the prompt names.

    With `stream`, up to `partial_images` previews of each come first. Errors have OpenAI's form.
    """
    partial_images = body.partial_images or 0
    with stage(state.metrics, request.scope, "admit"):
        seconds = time_limit(given_seconds, state.settings.request_timeout)
        manifest = await _manifest(state, body.model)
        size = _size(body.size, manifest)
        job = await admit(
            state,
            request.scope,
            client,
            Job(
                resolve(images_body(body, manifest), manifest, "png"),
                timeout=seconds,
                keep=key is not None,
                previews=bool(body.stream and partial_images),
                idempotency=idempotency(key, ENDPOINT, body, ""),
                priority=client.priority_of(body.priority, "interactive"),
            ),
        )
    if body.stream:
        encoder = OpenAIEventEncoder(job, size, partial_images)
        return stream_generation(state, request.scope, job, encoder, seconds)
    result = await wait_for_result(state, job, request.receive, seconds)
    with stage(state.metrics, request.scope, "deliver"):
        content = _answer(job, result, size).model_dump_json()
        return Response(content, media_type="application/json")


@router.get(f"{PREFIX}/models", summary="The models, as OpenAI's API lists them")
async def list_models(state: State) -> OpenAIModelList:
    """Every model that requests can name; `/models` says more of them."""
    return OpenAIModelList(data=[_model(manifest) for manifest in await served_manifests(state)])


@router.get(
    PREFIX + "/models/{name}",
    summary="A model, as OpenAI's API has it",
    responses=openai_problems("unknown-model"),
)
async def show_model(name: str, state: State) -> OpenAIModel:
    """One model, with the time at which its version was made."""
    return _model(await _manifest(state, name))


def _model(manifest: Manifest) -> OpenAIModel:
    return OpenAIModel(id=manifest.name, created=int(manifest.created.timestamp()))


def images_body(body: OpenAIBody, manifest: Manifest) -> ImagesBody:
    """Convert to a body as of ``/generate``; digits are an id, unless a class is called so."""
    shared = {name: getattr(body, name) for name in SHARED}
    images = {"num_images": body.n or 1, "format": body.output_format}
    prompt = body.prompt.strip()
    is_id = prompt.isascii() and prompt.isdigit() and not manifest.class_ids(prompt)
    named = {"class_id": int(prompt)} if is_id else {"class_name": body.prompt}
    return ImagesBody.model_validate({**named, **images, **shared})


async def _manifest(state: AppState, name: str | None) -> Manifest:
    try:
        return await state.manifest(name)
    except UnknownModelError as error:
        hint = f"{error}; leave it out, or take one that /models lists"
        raise UnknownModelError("model", hint) from error


def _size(given: str | None, manifest: Manifest) -> str:
    size = f"{manifest.image_size}x{manifest.image_size}"
    if given not in (None, "auto", size):
        raise InvalidFieldError("size", f"{manifest.name} makes images of {size}, or auto")
    return size


def _answer(job: Job, result: JobResult, size: str) -> OpenAIAnswer:
    return OpenAIAnswer(
        created=int(job.submitted_at),
        data=[OpenAIImage(b64_json=base64_of(i.data), seed=i.seed) for i in result.images],
        output_format=job.request.format,
        size=size,
        usage=usage_of(*result.images),
    )


@dataclass(slots=True)
class OpenAIEventEncoder:
    """Encodes the updates of a job that OpenAI's API has events for.

    Attributes
    ----------
    size : of its images, as the API writes it
    partial_images : previews per image, at most
    sent : previews sent, by image
    """

    job: Job
    size: str
    partial_images: int
    sent: Counter[int] = field(default_factory=Counter)

    def encode(self, update: JobUpdate) -> Iterator[bytes]:
        """Previews at even distances, and the finished images."""
        match update:
            case NumberedEvent(_, Preview() as preview) if self._is_due(preview):
                yield self._partial(preview)
            case JobResult():
                for index, image in enumerate(update.images):
                    yield self._completed(index, image)

    def encode_error(self, error: MascError) -> bytes:
        """The last event when there are no images."""
        return format_sse_event(event="error", data_str=openai_error(error).model_dump_json())

    def _is_due(self, preview: Preview) -> bool:
        sent = self.sent[preview.image]
        share = preview.rows / preview.num_rows
        return sent < self.partial_images and share >= (sent + 1) / (self.partial_images + 1)

    def _partial(self, preview: Preview) -> bytes:
        event = PartialImageEvent(
            b64_json=base64_of(preview.data),
            index=preview.image,
            partial_image_index=self.sent[preview.image],
            created_at=int(time.time()),
            size=self.size,
            output_format=preview.format,
            **provisional(self.job.request),
        )
        self.sent[preview.image] += 1
        data = event.model_dump_json(exclude_none=True)
        return format_sse_event(event=event.type, data_str=data)

    def _completed(self, index: int, image: ImageOutput) -> bytes:
        event = CompletedEvent(
            b64_json=base64_of(image.data),
            index=index,
            created_at=int(time.time()),
            size=self.size,
            output_format=self.job.request.format,
            seed=image.seed,
            usage=usage_of(image),
        )
        return format_sse_event(event=event.type, data_str=event.model_dump_json())


def usage_of(*images: ImageOutput) -> Usage:
    """Tokens that images took: one for the class, and one a position."""
    read, written = len(images), sum(len(image.entropies) for image in images)
    return Usage(
        input_tokens=read,
        input_tokens_details=TokenDetails(image_tokens=0, text_tokens=read),
        output_tokens=written,
        total_tokens=read + written,
    )
