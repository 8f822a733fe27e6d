"""What the service says of itself."""

from __future__ import annotations

from pydantic import BaseModel


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
