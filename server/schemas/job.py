"""A job: what it is given, and what is told of it."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any

from pydantic import BaseModel, Field

from masc_core.bundle.manifest import Decoding
from masc_core.images import ImageFormat
from server.schemas.generate import ImagesBody
from server.schemas.image import ImageFacts, ModelVersion, Stages
from server.schemas.problem import Problem
from worker.jobs.queue import JobState

EXAMPLE_JOB: dict[str, Any] = {
    "id": "0c3c8a4c2fd14b6ba4ff4a2f3c5e8a77",
    "state": "waiting",
    "position": 3,
    "estimated_start_seconds": 1.6,
    "created": "2026-01-31T12:00:00Z",
    "timeout": 3600.0,
    "request": {
        "model": "tiny",
        "version": "1",
        "class_id": 8,
        "class_name": "ship",
        "cfg_scale": 3.0,
        "num_images": 1,
        "seed": 3,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "decoding": "uniform",
        "format": "png",
    },
    "events": "/jobs/0c3c8a4c2fd14b6ba4ff4a2f3c5e8a77/events",
}


class JobBody(ImagesBody):
    """What to generate while nobody waits."""

    previews: Annotated[
        bool, Field(description="Tell how far the images are, and show what is drawn so far.")
    ] = True


class JobRequest(BaseModel):
    """What was asked for, with every default filled in."""

    model: str
    version: str
    class_id: int
    class_name: str
    cfg_scale: float
    num_images: int
    seed: Annotated[int, Field(description="Image `i` uses `seed + i`, modulo 2^63.")]
    temperature: float
    top_k: int
    top_p: float
    decoding: Decoding
    format: ImageFormat


class JobImage(ImageFacts):
    """A finished image, to be fetched."""

    index: int
    url: Annotated[str, Field(description="Path of the file.")]


class JobAnswer(BaseModel):
    """Where a job is, and what has come of it."""

    id: str
    state: Annotated[JobState, Field(description="`waiting`, `running`, or how it ended.")]
    position: Annotated[
        int | None, Field(description="Jobs that are ahead; null unless it waits.")
    ] = None
    estimated_start_seconds: Annotated[
        float | None,
        Field(description="Seconds from now; null unless it waits and something is known."),
    ] = None
    created: Annotated[dt.datetime, Field(description="When it was accepted.")]
    timeout: Annotated[float, Field(description="Seconds from then on that it is given.")]
    request: JobRequest
    events: Annotated[str, Field(description="Path of its stream of events.")]
    model: Annotated[
        ModelVersion | None, Field(description="What made the images, once they are there.")
    ] = None
    images: Annotated[list[JobImage] | None, Field(description="Once they are there.")] = None
    timings: Stages | None = None
    error: Annotated[Problem | None, Field(description="Why there are no images.")] = None
