"""What the service says of itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field


class Health(BaseModel):
    """The process answers."""

    status: str


class Worker(BaseModel):
    """A worker that is ready, and the version it serves."""

    id: str
    version: str


class Readiness(BaseModel):
    """A worker for the default model is ready."""

    status: str
    model: str
    workers: list[Worker]


class Version(BaseModel):
    """Version of the software."""

    name: str
    version: str


class QueueState(BaseModel):
    """The queue as a whole, the same at every front end."""

    depth: Annotated[int, Field(description="Jobs that wait.")]
    running: Annotated[int, Field(description="Jobs that workers have claimed.")]
    oldest_seconds: Annotated[float, Field(description="Age of the oldest that waits; 0 if none.")]
    jobs_per_second: Annotated[float, Field(description="Finished of late; 0 when unknown.")]
    accepted: Annotated[int, Field(description="Jobs since the queue began.")]
    ended: Annotated[dict[str, int], Field(description="Of these, those that ended, and how.")]


class WorkerState(BaseModel):
    """A worker, as it announces itself."""

    id: str
    ready: bool
    model: str
    version: str
    detail: Annotated[str, Field(description="Why it is not ready; may be empty.")]


class Status(BaseModel):
    """The service as this front end sees it."""

    version: Annotated[str, Field(description="Of the software.")]
    draining: Annotated[bool, Field(description="Whether it takes no more work.")]
    default_model: str
    queue: Annotated[QueueState | None, Field(description="Null while it cannot be reached.")]
    workers: list[WorkerState]
