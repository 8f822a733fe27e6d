"""One of the models that a worker serves: its versions, and what makes another one ready.

A model whose active version cannot be served has none, until another one is activated; the other
models of the worker are not concerned.
"""

from __future__ import annotations

from collections.abc import Iterator

from worker.jobs.queue import WorkerStatus
from worker.model.loaded_version import LoadedVersion
from worker.model.versions import NO_REFUSAL, ModelReloader, ModelVersions, Refusal


class ServedModel:
    """A model by its name; used by the loop's thread.

    Parameters
    ----------
    name : of the model
    loaded : the version that is served; None where there is none that can be
    reloader : makes other versions ready; None where the version stays

    Attributes
    ----------
    versions : those that are loaded; None where no version can be served
    engine_failures : of its engines, since the last image
    """

    def __init__(
        self, name: str, loaded: LoadedVersion | None, reloader: ModelReloader | None = None
    ) -> None:
        self.name, self.reloader = name, reloader
        self.versions = None if loaded is None else ModelVersions(loaded)
        self.engine_failures = 0

    def __iter__(self) -> Iterator[LoadedVersion]:
        """All loaded versions, oldest first."""
        return iter(self.versions or ())

    @property
    def newest(self) -> LoadedVersion:
        """The version that new jobs go to, of a model that has one."""
        return list(self)[-1]

    @property
    def free_rows(self) -> int:
        """Rows to claim jobs for."""
        return 0 if self.versions is None else self.versions.free_rows

    @property
    def capacity_rows(self) -> int:
        """Rows that the batch of the newest version can hold."""
        return 0 if self.versions is None else self.versions.newest.engine.capacity_rows

    @property
    def refusal(self) -> Refusal:
        """The active version, if it cannot be served, and why."""
        return NO_REFUSAL if self.reloader is None else self.reloader.refusal

    def warm_up(self) -> None:
        """Make the first image, with the version before where this one cannot make it.

        Raises
        ------
        Exception : neither can
        """
        if self.versions is None:
            return
        try:
            self.newest.warm_up()
        except Exception as error:
            if self.reloader is None:
                raise
            loaded = self.reloader.load_previous(error)
            self.newest.close()
            self.versions = ModelVersions(loaded)
            loaded.warm_up()

    def serve_none(self, error: Exception) -> None:
        """Close all versions, since none makes a first image, and wait for another activation."""
        self.close()
        self.versions = None
        if self.reloader is not None:
            self.reloader.serve_none(error)

    def take_version(self) -> LoadedVersion | None:
        """Change over to a version that has become ready, if there is one, and return it."""
        loaded = None if self.reloader is None else self.reloader.take()
        if loaded is not None:
            if self.versions is None:
                self.versions = ModelVersions(loaded)
            else:
                self.versions.add(loaded)
        return loaded

    def close(self) -> None:
        """Close all versions."""
        if self.versions is not None:
            self.versions.close()

    def status(self, worker_id: str, *, ready: bool, detail: str = "") -> WorkerStatus:
        """What the worker announces of this model; ready only with a version."""
        refused = self.refusal if ready else NO_REFUSAL
        return WorkerStatus(
            worker_id=worker_id,
            ready=ready and self.versions is not None,
            model=self.name,
            version="" if self.versions is None else self.newest.manifest.version,
            detail=detail or refused.reason,
            refused=refused.version,
        )
