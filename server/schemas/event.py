"""What a stream of events tells, one model an event; a failure is told as a problem."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import BaseModel, Field

from masc_core.images import ImageFormat
from server.schemas.image import Image, ModelVersion, Stages
from server.schemas.problem import Problem

ImageIndex = Annotated[int, Field(description="Which image of the job, from 0.")]


class QueuedEvent(BaseModel):
    """The job waits; sent at once, and whenever its position changes."""

    position: Annotated[int, Field(description="Jobs that are ahead.")]
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
    rows: Annotated[int, Field(description="Rows of the grid that are drawn.")]
    num_rows: Annotated[int, Field(description="All rows of the grid.")]


class PreviewEvent(ProgressEvent):
    """The upper rows of an image, as wide as the image and as high as the rows."""

    format: ImageFormat
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
