"""What the routes of one application share; they take it as the dependency `State`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from starlette.applications import Starlette

from masc_core.bundle.manifest import Manifest
from masc_core.bundle.registry import Registry
from masc_core.errors import ArtifactError, NoWorkerError, UnknownModelError
from masc_core.escapes import quoted
from server.activation import Activator
from server.auth.api_keys import Authenticator
from server.codebook_view.cache import CodebookCache
from server.drain import Drain
from server.metrics import ServerMetrics
from server.settings import ServerSettings
from worker.jobs.queue import JobProducer, WorkerStatus

WORKER_RETRY_AFTER = 2.0


@dataclass(frozen=True, slots=True)
class AppState:
    """The parts of one front end; ``default_model`` is that of a request that names none."""

    settings: ServerSettings
    queue: JobProducer
    registry: Registry
    default_model: str
    metrics: ServerMetrics
    drain: Drain
    access: Authenticator
    activator: Activator
    codebook_cache: CodebookCache
    # Of served versions, by name and version.
    manifests: dict[tuple[str, str], Manifest] = field(default_factory=dict)

    def job_url(self, job_id: str) -> str:
        """Absolute path of a job, as clients see it."""
        return f"{self.settings.root_path}/jobs/{job_id}"

    async def manifest(self, name: str | None = None) -> Manifest:
        """Manifest of a model, by default of the default model; see `served_manifest`."""
        if name is None:
            name = self.default_model
        served = await self.served()
        known = self._cached_manifest(name, served)
        if known is not None:
            return known
        return await asyncio.to_thread(self._find, name, served)  # which a disk or bucket may delay

    async def served(self) -> Mapping[str, Sequence[str]]:
        """Versions of each model that ready workers announce, those of the first worker first."""
        versions: dict[str, list[str]] = {}
        for worker in await self.queue.workers():
            if worker.ready and worker.version:
                versions.setdefault(worker.model, []).append(worker.version)
        return versions

    def _find(self, name: str, served: Mapping[str, Sequence[str]]) -> Manifest:
        if name not in served and name not in self.registry.models():
            raise UnknownModelError("model", f"there is no model {quoted(name)}")
        return self.served_manifest(name, served)

    def _cached_manifest(self, name: str, served: Mapping[str, Sequence[str]]) -> Manifest | None:
        """Manifest of the one version that all workers serve, if it was read before."""
        versions = set(served.get(name, ()))
        return self.manifests.get((name, versions.pop())) if len(versions) == 1 else None

    def served_manifest(self, name: str, served: Mapping[str, Sequence[str]]) -> Manifest:
        """Manifest of the version that makes the images of a model.

        The version that workers serve; if several, the active one where it is among them. Served
        manifests are cached; without workers it is read each time.

        Raises
        ------
        UnknownModelError : no model of that name
        ArtifactError : its files are damaged or gone
        """
        versions = served.get(name, ())
        if not versions:
            return self.registry.manifest(name)
        version = versions[0] if len(set(versions)) == 1 else self._preferred(name, versions)
        if (name, version) not in self.manifests:
            try:
                self.manifests[name, version] = self.registry.manifest(name, version)
            except UnknownModelError as error:
                location = self.registry.location(name, version)
                raise ArtifactError(location, "is gone, but a worker serves it") from error
        return self.manifests[name, version]

    async def ready_workers(self, model: str) -> list[WorkerStatus]:
        """Workers that are ready for ``model``, at least one.

        Raises
        ------
        NoWorkerError : there is none; the message says why
        """
        workers = await self.queue.workers()
        ready = [worker for worker in workers if worker.ready and worker.model == model]
        if not ready:
            raise NoWorkerError(_why_not(model, workers), WORKER_RETRY_AFTER)
        return ready

    def _preferred(self, name: str, versions: Sequence[str]) -> str:
        try:
            active = self.registry.current(name)
        except (ArtifactError, UnknownModelError):
            return versions[0]
        return active if active in versions else versions[0]


def _why_not(model: str, workers: Sequence[WorkerStatus]) -> str:
    if not workers:
        return "no worker has announced itself"
    own = [worker for worker in workers if worker.model in {"", model}]
    if not own:
        others = ", ".join(sorted({repr(worker.model) for worker in workers}))
        return f"no worker serves the model {model!r}, it is only stored; they serve {others}"
    states = dict.fromkeys(worker.public_detail or "not ready" for worker in own[:3])
    return f"no worker is ready for the model {model!r} ({'; '.join(states)})"


def app_state(app: Starlette) -> AppState:
    """The parts of an application; the one place that reads Starlette's untyped ``app.state``."""
    return app.state.masc


async def _state_of(request: Request) -> AppState:
    return app_state(request.app)


State = Annotated[AppState, Depends(_state_of)]
