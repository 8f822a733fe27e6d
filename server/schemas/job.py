"""A job: what it is given, and what is told of it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field

from masc_core.images import ImageFormat
from server.errors import Problem
from server.schemas.generate import (
    Image,
    ImageMetadata,
    ImagesBody,
    ModelVersion,
    Provisional,
    SamplingValues,
    Stages,
)
from worker.jobs.priority import Priority
from worker.jobs.queue import JobState

EXAMPLE_JOB: dict[str, Any] = {
    "id": "0c3c8a4c2fd14b6ba4ff4a2f3c5e8a77",
    "state": "waiting",
    "priority": "batch",
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
        "cfg_schedule": "constant",
        "cfg_start": 0.18,
        "cluster_top_k": 0,
        "cluster_top_p": 1.0,
        "num_images": 1,
        "seed": 3,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "decoding": "uniform",
        "code_temperature": 1.0,
        "code_top_k": 0,
        "code_cfg_scale": 1.0,
        "format": "png",
    },
    "events": "/jobs/0c3c8a4c2fd14b6ba4ff4a2f3c5e8a77/events",
}


class JobBody(ImagesBody):
    """What to generate while nobody waits."""

    previews: Annotated[
        bool, Field(description="Tell how far the images are, and show what is drawn so far.")
    ] = True


class JobRequest(SamplingValues):
    """What was asked for, with every default filled in."""

    model: str
    version: str
    class_id: int
    class_name: str
    num_images: int
    seed: Annotated[int, Field(description="Image `i` uses `seed + i`, modulo 2^63.")]
    format: ImageFormat


class JobImage(ImageMetadata):
    """A finished image, to be fetched."""

    index: int
    url: Annotated[str, Field(description="Path of the file.")]


class JobAnswer(BaseModel):
    """Where a job is, and what has come of it."""

    id: str
    state: Annotated[JobState, Field(description="`waiting`, `running`, or how it ended.")]
    priority: Priority
    position: Annotated[
        int | None, Field(description="Jobs that are ahead now; null unless it waits.")
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


class CancelAnswer(BaseModel):
    """What has become of a client's jobs."""

    cancelled: Annotated[int, Field(description="Jobs that waited or ran, and have ended now.")]


ImageIndex = Annotated[int, Field(description="Which image of the job, from 0.")]


class QueuedEvent(BaseModel):
    """The job waits; sent at once, and whenever its position changes.

    It can grow: jobs of other keys, and interactive ones, go ahead when it is their turn.
    """

    position: Annotated[int, Field(description="Jobs that are ahead now.")]
    estimated_start_seconds: Annotated[
        float | None, Field(description="Seconds from now; null while nothing is known.")
    ]


class StartedEvent(BaseModel):
    """A worker has taken the job; after a worker was lost, another one."""

    model: str
    version: str


class ProgressEvent(BaseModel):
    """So much of an image is drawn."""

    image: ImageIndex
    rows: Annotated[
        int, Field(description="Rows of the grid that are drawn, or tokens of a `gigatok1d` model.")
    ]
    num_rows: Annotated[int, Field(description="All of them.")]


class PreviewEvent(ProgressEvent):
    """The upper rows of an image, as wide as the image and as high as the rows.

    Of a `gigatok1d` model, whose tokens have no place, it is the whole image, finer each time.
    """

    format: ImageFormat
    provisional: Provisional = None
    b64: Annotated[str, Field(description="The file in Base64.")]


class ImageEvent(Image):
    """A finished image."""

    index: ImageIndex


class DoneEvent(BaseModel):
    """All images have been sent; the last event."""

    id: str
    model: ModelVersion
    timings: Stages


EXAMPLE_EVENTS: Final = """event: queued
data: {"position":2,"estimated_start_seconds":0.8}

event: progress
data: {"image":0,"rows":1,"num_rows":8}
id: 2

"""
EVENT_MODELS: Final[Mapping[str, type[BaseModel]]] = {
    "queued": QueuedEvent,
    "started": StartedEvent,
    "progress": ProgressEvent,
    "preview": PreviewEvent,
    "image": ImageEvent,
    "done": DoneEvent,
    "error": Problem,
}
