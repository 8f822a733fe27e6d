"""Activate another version of a model while the service runs.

The registry's active version changes once the files match their checksums. Workers see that, load
the version beside the old one, and switch. If one refuses it, the activation is undone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from masc_core.bundle.registry import Registry
from masc_core.errors import ArtifactError, QueueDownError, StorageDownError, VersionRefusedError
from worker.jobs.queue import JobProducer, WorkerStatus

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
FOLLOW_SECONDS = 600.0  # after an answer that did not wait for the workers
FORGET_SECONDS = 5.0  # for workers to take back a refusal


class ActivateAnswer(BaseModel):
    """Result of an activation."""

    model: str
    version: str
    previous: Annotated[str | None, Field(description="The version that was active before.")]
    state: Annotated[
        Literal["serving", "pending"],
        Field(description="`serving` once all workers that are ready serve the version."),
    ]
    num_workers: Annotated[int, Field(description="How many workers serve it.")]
    warnings: Annotated[
        list[str],
        Field(
            description="What clients of the previous version will miss: decodings, classes, "
            "their numbers, the size of images, pictures of the codebook."
        ),
    ]


class Activator:
    """Activates versions, one at a time."""

    def __init__(self, registry: Registry, queue: JobProducer) -> None:
        self._registry, self._queue = registry, queue
        self._lock = asyncio.Lock()
        self._followed: asyncio.Task[None] | None = None  # what goes on after an answer

    async def activate(self, name: str, version: str, seconds: float) -> ActivateAnswer:
        """Make a version the active one, and wait up to ``seconds`` until the workers serve it.

        Raises
        ------
        UnknownModelError : no such model or version
        VersionRefusedError : its files are damaged, or a worker cannot serve it; the version that
            was active before is active again
        """
        async with self._lock:
            await self.close()
            previous = await self._active(name, self._registry.current_now)
            if previous != version:
                await self._wait_for_old_refusals(name, version)
            try:
                losses = await asyncio.to_thread(self._registry.activate, name, version)
            except StorageDownError:
                raise
            except ArtifactError as error:
                raise VersionRefusedError("version", str(error)) from error
            if previous == version:
                await self._wait_for_old_refusals(name, version)
            is_done, serving = await self._wait(name, version, previous, seconds)
            if not is_done:
                follow = self._follow(name, version, previous)
                self._followed = asyncio.get_running_loop().create_task(follow)
            return ActivateAnswer(
                model=name,
                version=version,
                previous=previous,
                state="serving" if is_done else "pending",
                num_workers=serving,
                warnings=list(losses),
            )

    async def close(self) -> None:
        """Follow an activation no longer that was answered before its end."""
        if self._followed is not None:
            self._followed.cancel()
            await asyncio.gather(self._followed, return_exceptions=True)
            self._followed = None

    async def _wait(
        self, name: str, version: str, previous: str | None, seconds: float
    ) -> tuple[bool, int]:
        """Whether all ready workers serve the version within so many seconds, and how many do."""
        deadline = time.monotonic() + seconds
        while True:
            workers = await self._workers(name)
            await self._undo_if_refused(workers, name, version, previous)
            ready = [worker for worker in workers if worker.ready]
            serving = sum(worker.version == version for worker in ready)
            is_done = serving == len(ready) and (serving > 0 or not workers)
            if is_done or time.monotonic() >= deadline:
                return is_done, serving
            await asyncio.sleep(POLL_SECONDS)

    async def _follow(self, name: str, version: str, previous: str | None) -> None:
        """Undo an activation that workers refuse after the client had its answer."""
        deadline = time.monotonic() + FOLLOW_SECONDS
        while time.monotonic() < deadline and await self._is_active(name, version):
            try:
                is_done, _ = await self._wait(name, version, previous, 0.0)
            except QueueDownError:
                is_done = False
            except VersionRefusedError:  # which is logged
                return
            if is_done:
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _workers(self, name: str) -> list[WorkerStatus]:
        return [worker for worker in await self._queue.workers() if worker.model == name]

    async def _wait_for_old_refusals(self, name: str, version: str) -> None:
        """Wait until no worker refuses the version because of an earlier try.

        A worker takes its refusal back when another version is active, and when the same one is
        activated again. Its status until then must not undo this activation.
        """
        deadline = time.monotonic() + FORGET_SECONDS
        while any(worker.refused == version for worker in await self._workers(name)):
            if time.monotonic() >= deadline:
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _undo_if_refused(
        self, workers: list[WorkerStatus], name: str, version: str, previous: str | None
    ) -> None:
        refusing = next((worker for worker in workers if worker.refused == version), None)
        if refusing is None:
            return
        if previous not in {None, version}:
            try:
                await asyncio.to_thread(self._registry.rollback, name, leaving=version)
            except ArtifactError as error:  # another one was activated meanwhile, or files are gone
                logger.warning("%s %s stays active: %s", name, version, error)
        logger.error("%s refuses %s %s: %s", refusing.worker_id, name, version, refusing.detail)
        raise VersionRefusedError("version", f"a worker cannot serve it: {refusing.detail}")

    async def _is_active(self, name: str, version: str) -> bool:
        with suppress(StorageDownError):
            return await self._active(name, self._registry.current) == version
        return False

    @staticmethod
    async def _active(name: str, read: Callable[[str], str]) -> str | None:
        """The active version; None where there is none."""
        try:
            return await asyncio.to_thread(read, name)
        except StorageDownError:
            raise
        except ArtifactError:
            return None
