"""What every route of one application shares.

Routes get it as a dependency, so that one process can hold several applications and tests need no
global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from masc_core.errors import NoWorkerError, UnknownModelError
from masc_core.manifest import Manifest
from masc_core.registry import Registry
from server.metrics import ServerMetrics
from server.settings import ServerSettings
from worker.jobs.job import WorkerStatus
from worker.jobs.queue import JobProducer

WORKER_RETRY_AFTER = 2.0


@dataclass(frozen=True, slots=True)
class Front:
    """The parts of one front end; ``default_model`` is that of a request which names none."""

    settings: ServerSettings
    queue: JobProducer
    registry: Registry
    default_model: str
    metrics: ServerMetrics

    def manifest(self, name: str | None = None) -> Manifest:
        """Manifest of a model's active version, looked up anew each time: it may be swapped.

        Raises
        ------
        UnknownModelError : no active model of that name
        ArtifactError : its files are damaged
        """
        if name is None:
            name = self.default_model
        elif name not in self.registry.models():
            raise UnknownModelError("model", f"there is no model {name!r}")
        return self.registry.manifest(name)

    async def ready_workers(self, model: str) -> list[WorkerStatus]:
        """Workers that can make images with ``model`` now, at least one.

        Raises
        ------
        NoWorkerError : there is none; says what the workers say of themselves
        """
        workers = await self.queue.workers()
        ready = [worker for worker in workers if worker.ready and worker.model == model]
        if not ready:
            raise NoWorkerError(_why_not(model, workers), WORKER_RETRY_AFTER)
        return ready


def _why_not(model: str, workers: Sequence[WorkerStatus]) -> str:
    if not workers:
        return "no worker has announced itself"
    states = [f"{w.worker_id}: {w.detail or _state(w)}" for w in workers[:3]]
    return f"no worker is ready for the model {model!r} ({'; '.join(states)})"


def _state(worker: WorkerStatus) -> str:
    return f"serves {worker.model!r}" if worker.ready else "not ready"


async def _front(request: Request) -> Front:
    front: Front = request.app.state.front
    return front


FrontDependency = Annotated[Front, Depends(_front)]
