"""Finished images as answers: files with headers, or JSON."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from masc_core.images import ImageFormat
from server.schemas.generate import GenerateAnswer, Image, ModelVersion, Stages
from worker.jobs.job import GenerationRequest
from worker.jobs.outcome import ImageOutput, JobResult, Timings

BINARY: Final = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
IMAGE_HEADERS: Final = {
    "X-Masc-Seed": "Seed of the image.",
    "X-Masc-Model": "Name and version of the model, with a slash between.",
    "X-Masc-Entropy-Bits": "Mean entropy of the predictions, bits per position.",
    "Server-Timing": "Milliseconds in each stage.",
}


def image_headers(result: JobResult, index: int) -> dict[str, str]:
    """Headers of an answer that is the file of one image."""
    image = result.images[index]
    return {
        "X-Masc-Seed": str(image.seed),
        "X-Masc-Model": f"{result.model}/{result.version}",
        "X-Masc-Entropy-Bits": f"{image.entropy_bits:.6f}",
        "Server-Timing": server_timing(result.timings),
    }


def json_response(
    job_id: str, result: JobResult, file_format: ImageFormat, *, entropies: bool
) -> Response:
    """Answer with all images in one JSON document."""
    answer = GenerateAnswer(
        id=job_id,
        images=[
            Image(
                **image_metadata(image, file_format, entropies=entropies), b64=base64_of(image.data)
            )
            for image in result.images
        ],
        **model_and_timings(result),
    )
    headers = {"Server-Timing": server_timing(result.timings), "Vary": "Accept"}
    content = answer.model_dump_json(exclude_unset=True)
    return Response(content, headers=headers, media_type="application/json")


def image_metadata(
    image: ImageOutput, file_format: ImageFormat, *, entropies: bool
) -> dict[str, Any]:
    """Fields of `ImageMetadata`; entropies are left out unless asked for."""
    facts: dict[str, Any] = {
        "seed": image.seed,
        "format": file_format,
        "entropy_bits": image.entropy_bits,
        "entropy_ratio": image.entropy_ratio,
    }
    if entropies:
        facts["entropies"] = list(image.entropies)
    if image.cluster_entropies:
        facts["cluster_entropy_bits"] = image.cluster_entropy_bits
        facts["cluster_entropy_ratio"] = image.cluster_entropy_ratio
        if entropies:
            facts["cluster_entropies"] = list(image.cluster_entropies)
    return facts


def model_and_timings(result: JobResult) -> dict[str, Any]:
    """The fields ``model`` and ``timings`` of an answer: what made the images, and how fast."""
    version = ModelVersion(
        name=result.model, version=result.version, weights_sha256=result.weights_sha256
    )
    return {"model": version, "timings": Stages(**result.timings.by_stage())}


def provisional(request: GenerationRequest) -> dict[str, bool]:
    """The field ``provisional`` of a preview, where the final picture will differ."""
    return {"provisional": True} if request.decoding == "complete" else {}


def server_timing(timings: Timings) -> str:
    """Write the stages as a Server-Timing header, in milliseconds."""
    seconds_of = timings.by_stage().items()
    return ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in seconds_of)


def base64_of(data: bytes) -> str:
    """Bytes as they are written in JSON."""
    return base64.b64encode(data).decode()


def cached_response(
    request: Request,
    content: bytes,
    media_type: str,
    cache_control: str,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Answer with a file, or 304 where the client names its ETag, a hash of ``content``."""
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    cached = {"ETag": etag, "Cache-Control": cache_control}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=cached)
    return Response(content, headers={**(headers or {}), **cached}, media_type=media_type)
