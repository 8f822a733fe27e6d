"""``POST /generate``: from a class to images, in one request."""

from __future__ import annotations

import base64
import dataclasses
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from masc_core.images import ImageFormat
from server.accept import MEDIA_TYPES, image_format
from server.dispatch import admit, wait
from server.front import FrontDependency
from server.json_body import json_body
from server.openapi import Responses, json_request, problems
from server.resolve import resolve
from server.schemas import (
    EXAMPLE_ANSWER,
    EXAMPLE_REQUEST,
    GenerateAnswer,
    GenerateBody,
    Image,
    ModelVersion,
    Stages,
)
from worker.jobs.job import ImageOutput, Job, JobResult, Timings

router = APIRouter(tags=["images"])

BINARY = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
IMAGE_HEADERS = {
    "X-Masc-Seed": "Seed of the image.",
    "X-Masc-Model": "Name and version of the model, with a slash between.",
    "X-Masc-Entropy-Bits": "Mean entropy of the predictions, bits per position.",
    "Server-Timing": "Milliseconds in each stage.",
}
ANSWER: Responses = {
    200: {
        "model": GenerateAnswer,
        "description": "The images; as a file if one was wanted and `Accept` asks for an image.",
        "content": {
            "application/json": {"examples": {"one image": {"value": EXAMPLE_ANSWER}}},
            **dict.fromkeys(MEDIA_TYPES.values(), BINARY),
        },
        "headers": {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in IMAGE_HEADERS.items()
        },
    }
}
PROBLEMS = problems(
    "unknown-class",
    "unknown-model",
    "too-slow",
    "too-large",
    "not-json",
    "invalid",
    "non-finite",
    "queue-full",
    "no-worker",
    "timed-out",
)
EXAMPLES = {
    "by name": EXAMPLE_REQUEST,
    "by id": {"class_id": 1, "num_images": 4, "temperature": 0.9, "top_p": 0.95, "format": "webp"},
}


@router.post(
    "/generate",
    summary="Generate images of a class",
    responses=ANSWER | PROBLEMS,
    openapi_extra=json_request(GenerateBody, EXAMPLES),
)
async def generate(
    request: Request,
    front: FrontDependency,
    body: Annotated[GenerateBody, Depends(json_body(GenerateBody))],
) -> Response:
    """Make images and wait for them.

    The same request with the same seed gives the same bytes, whatever else the service does.
    """
    stage = front.metrics.stage_seconds.labels
    wanted = image_format(",".join(request.headers.getlist("accept")))
    with stage("admit").time():
        job = Job(resolve(body, await front.manifest(body.model), wanted or "png"))
        await admit(front, job)
    result = await wait(front.queue, job.id, request.receive, front.settings.request_timeout)
    with stage("deliver").time():
        file_format = job.request.format
        if wanted and len(result.images) == 1:
            return image_response(result, file_format)
        return json_response(job.id, result, file_format, entropies=body.entropies)


def image_response(result: JobResult, file_format: ImageFormat) -> Response:
    """Answer with the bytes of the only image, and the rest in headers."""
    (image,) = result.images
    headers = {
        "X-Masc-Seed": str(image.seed),
        "X-Masc-Model": f"{result.model}/{result.version}",
        "X-Masc-Entropy-Bits": f"{image.entropy_bits:.6f}",
        "Server-Timing": server_timing(result.timings),
        "Vary": "Accept",
    }
    return Response(image.data, headers=headers, media_type=MEDIA_TYPES[file_format])


def json_response(
    job_id: str, result: JobResult, file_format: ImageFormat, *, entropies: bool
) -> Response:
    """Answer with all images in one JSON document."""
    answer = GenerateAnswer(
        id=job_id,
        model=ModelVersion(
            name=result.model, version=result.version, weights_sha256=result.weights_sha256
        ),
        images=[_image(image, file_format, entropies=entropies) for image in result.images],
        timings=Stages(**dataclasses.asdict(result.timings)),
    )
    headers = {"Server-Timing": server_timing(result.timings), "Vary": "Accept"}
    content = answer.model_dump_json(exclude_none=True)
    return Response(content, headers=headers, media_type="application/json")


def server_timing(timings: Timings) -> str:
    """Write the stages as a Server-Timing header, in milliseconds."""
    stages = dataclasses.asdict(timings)
    return ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in stages.items())


def _image(image: ImageOutput, file_format: ImageFormat, *, entropies: bool) -> Image:
    return Image(
        b64=base64.b64encode(image.data).decode(),
        seed=image.seed,
        format=file_format,
        entropy_bits=image.entropy_bits,
        entropy_ratio=image.entropy_ratio,
        entropies=list(image.entropies) if entropies else None,
    )
