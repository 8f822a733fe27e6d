"""Whether the process lives, whether it can serve, what it measures, and which version it is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Annotated

from fastapi import APIRouter, Query
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.responses import Response

from masc_core.errors import CapacityError, QueueDownError
from server.auth.dependencies import IsAdmin
from server.openapi import Responses, problems
from server.state import AppState, State
from worker.jobs.queue import QueueStats, WorkerStatus

router = APIRouter(tags=["operation"])

PACKAGE = "masc"
WorkerId = Annotated[
    str, Field(description="Names a host and a process; for others than admins a number.")
]
METRICS_RESPONSE: Responses = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": "masc_ready 1.0\n"}}}
}


class Health(BaseModel):
    """The process answers."""

    status: str


class Worker(BaseModel):
    """A worker that is ready, and the version it serves."""

    id: WorkerId
    version: str


class Readiness(BaseModel):
    """A worker for the model is ready."""

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

    id: WorkerId
    ready: bool
    model: str
    version: str
    detail: Annotated[
        str,
        Field(description="Why it is not ready; may be empty. What an error said is for admins."),
    ]


class Status(BaseModel):
    """The service as this front end sees it."""

    version: Annotated[str, Field(description="Of the software.")]
    draining: Annotated[bool, Field(description="Whether it takes no more work.")]
    default_model: str
    queue: Annotated[QueueState | None, Field(description="Null while it cannot be reached.")]
    workers: list[WorkerState]


@router.get("/healthz", summary="Whether the process answers")
async def healthz() -> Health:
    """Answer as long as the process runs, whether or not it can make images."""
    return Health(status="ok")


@router.get(
    "/readyz",
    summary="Whether images can be made",
    responses=problems("no-worker", "queue-down", "draining", "unknown-model"),
)
async def readyz(
    state: State,
    is_admin: IsAdmin,
    model: Annotated[str | None, Query(description="Of this one, not of the default.")] = None,
) -> Readiness:
    """Answer 200 once a worker has made a warm-up image with the default model, or the given one.

    Of several models without a worker only the default one makes the front end not ready: the
    others are served all the same.
    """
    state.drain.check()
    name = state.default_model if model is None else (await state.manifest(model)).name
    workers = await state.ready_workers(name)
    return Readiness(
        status="ready",
        model=name,
        workers=[
            Worker(id=name, version=w.version) for name, w in _named(workers, is_admin=is_admin)
        ],
    )


@router.get(
    "/metrics",
    summary="Metrics in the text format of Prometheus",
    response_class=Response,
    responses=METRICS_RESPONSE,
)
async def metrics(state: State) -> Response:
    """Everything that this process counts, and what the queue says of itself now.

    While the queue is down, `masc_queue_up` is 0 and its own figures are absent.
    """
    ready, stats, workers = await asyncio.gather(_is_ready(state), _stats(state), _workers(state))
    state.metrics.ready.set(ready)
    state.metrics.queue.stats, state.metrics.queue.workers = stats, workers
    content = generate_latest(state.metrics.registry)
    return Response(content, media_type=CONTENT_TYPE_LATEST)


@router.get("/version", summary="Version of the software")
async def version() -> Version:
    """Name and version of what answers."""
    return Version(name=PACKAGE, version=software_version())


@router.get("/status", summary="Status of the service")
async def status(state: State, is_admin: IsAdmin) -> Status:
    """Tell what waits and runs, and how every worker is; for people and the page."""
    stats, workers = await asyncio.gather(_stats(state), _workers(state))
    return Status(
        version=software_version(),
        draining=state.drain.is_draining,
        default_model=state.default_model,
        queue=None if stats is None else _queue_state(stats),
        workers=[
            WorkerState(
                id=name,
                ready=w.ready,
                model=w.model,
                version=w.version,
                detail=w.detail if is_admin else w.public_detail,
            )
            for name, w in _named(workers, is_admin=is_admin)
        ],
    )


def _named(
    workers: Sequence[WorkerStatus], *, is_admin: bool
) -> Iterator[tuple[str, WorkerStatus]]:
    """Workers in the order of their ids, under these for an admin, and else under numbers.

    One that serves several models is there once for each, under one number.
    """
    processes = sorted({worker.process for worker in workers})
    for worker in sorted(workers, key=lambda worker: worker.worker_id):
        number = processes.index(worker.process) + 1
        yield worker.worker_id if is_admin else str(number), worker


def software_version() -> str:
    """Version of the installed distribution, ``unknown`` when run from a bare source tree."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return "unknown"


def _queue_state(stats: QueueStats) -> QueueState:
    return QueueState(
        depth=stats.depth,
        running=stats.running,
        oldest_seconds=stats.oldest_age,
        jobs_per_second=stats.completion_rate,
        accepted=stats.totals.accepted,
        ended=dict(stats.totals.ended),
    )


async def _is_ready(state: AppState) -> bool:
    try:
        state.drain.check()
        await state.ready_workers(state.default_model)
    except CapacityError:
        return False
    return True


async def _workers(state: AppState) -> Sequence[WorkerStatus]:
    """Statuses of the workers, none while the queue cannot be reached."""
    try:
        return await state.queue.workers()
    except QueueDownError:
        return ()


async def _stats(state: AppState) -> QueueStats | None:
    """State of the queue, None while it cannot be reached."""
    try:
        return await state.queue.stats()
    except QueueDownError:
        return None
