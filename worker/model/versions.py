"""The versions of one model: those that a worker has loaded, and how another one comes in.

New jobs go to the newest. A version that was superseded ends with what it has, and stays a little
longer for jobs that were submitted for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from masc_core.bundle.registry import Registry
from masc_core.errors import MascError, StorageDownError
from worker.model.loaded_version import LoadedVersion

logger = logging.getLogger(__name__)

RETIRE_SECONDS = 10.0
MAX_LOADED = 2  # beyond, a version goes as soon as it has nothing to do
POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class _Retired:
    loaded: LoadedVersion
    since: float


class ModelVersions:
    """The loaded versions, oldest first; the clock gives monotonic seconds."""

    def __init__(self, first: LoadedVersion, clock: Callable[[], float] = time.monotonic) -> None:
        self.newest = first
        self._retired: list[_Retired] = []
        self._clock = clock

    def __iter__(self) -> Iterator[LoadedVersion]:
        """All of them."""
        return iter([*(retired.loaded for retired in self._retired), self.newest])

    @property
    def free_rows(self) -> int:
        """Rows to claim jobs for: free ones of the newest, less those that older ones wait for.

        A job for an older version takes none of the newest's rows: without the subtraction such
        jobs would be claimed without end.
        """
        waiting = sum(retired.loaded.rows_waiting for retired in self._retired)
        return self.newest.free_rows - waiting

    def get(self, version: str) -> LoadedVersion:
        """The version of that name, or else the newest."""
        return next((loaded for loaded in self if loaded.manifest.version == version), self.newest)

    def add(self, loaded: LoadedVersion) -> None:
        """Make this version the newest."""
        self._retired.append(_Retired(self.newest, self._clock()))
        self.newest = loaded

    def close_retired(self) -> None:
        """Close superseded versions that are idle and were kept long enough."""
        for retired in [each for each in self._retired if each.loaded.is_idle]:
            age = self._clock() - retired.since
            if age > RETIRE_SECONDS or len(self._retired) >= MAX_LOADED:
                self._retired.remove(retired)
                retired.loaded.close()

    def close(self) -> None:
        """Close all of them."""
        for loaded in self:
            loaded.close()


class Refusal(NamedTuple):
    """A version that cannot be served, and why; both empty where there is none."""

    version: str = ""
    reason: str = ""


NO_REFUSAL = Refusal()


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, MascError) else "see the worker's log"


def load_first(
    registry: Registry, name: str, load: Callable[[Path], LoadedVersion]
) -> tuple[LoadedVersion, Refusal]:
    """The active version of a model, or its predecessor where the active one cannot be loaded.

    Raises
    ------
    Exception : why the active one cannot be loaded, where there is none before it
    """
    version = registry.current(name)
    try:
        return load(registry.path(name, version)), NO_REFUSAL
    except StorageDownError:  # which says nothing about the version
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, the one before may do
        return _load_previous(registry, name, load, Refusal(version, _reason(error)), error)


def _load_previous(
    registry: Registry,
    name: str,
    load: Callable[[Path], LoadedVersion],
    refusal: Refusal,
    error: Exception,
) -> tuple[LoadedVersion, Refusal]:
    previous = registry.previous(name)
    if previous is None:
        raise error
    logger.error(
        "%s %s is refused, the version before it, %s, is served: %s; masc models rollback makes "
        "that the active one", name, refusal.version, previous, refusal.reason,
    )  # fmt: skip
    return load(registry.path(name, previous)), refusal


class ModelReloader:
    """Follows the active version of one model, from `start` to `close`.

    A thread polls the registry. Another version than is served is verified, loaded and warmed up
    while the old one goes on; then the loop takes it. One that fails is refused, with the reason,
    until another one is activated, or the same once more.

    Parameters
    ----------
    registry, name : the model
    serving : its version that is served
    load : loads a version from its folder
    refusal : the active version, where that one could not be loaded
    poll_seconds : between two looks at the registry
    """

    def __init__(
        self,
        registry: Registry,
        name: str,
        serving: str,
        load: Callable[[Path], LoadedVersion],
        poll_seconds: float = POLL_SECONDS,
        refusal: Refusal = NO_REFUSAL,
    ) -> None:
        self._registry, self._name, self._load = registry, name, load
        self._poll_seconds = poll_seconds
        self._newest = serving
        # The latest activation that was looked into.
        self._tried = registry.activation(name) if refusal.version else None
        self._ready: LoadedVersion | None = None
        self._lock = threading.Lock()
        self.refusal = refusal
        self._ending = threading.Event()
        self._has_closed = False
        self._thread = threading.Thread(target=self._run, name="reloader", daemon=True)

    def load_previous(self, error: Exception) -> LoadedVersion:
        """The version before the one that is served, whose first image failed; before `start`.

        Raises
        ------
        Exception : the same, where there is none
        """
        refusal = Refusal(self._newest, _reason(error))
        if self.refusal.version or self._registry.current(self._name) != self._newest:
            raise error
        loaded, self.refusal = _load_previous(
            self._registry, self._name, self._load, refusal, error
        )
        self._newest, self._tried = loaded.manifest.version, self._registry.activation(self._name)
        return loaded

    def start(self) -> None:
        """Start polling."""
        self._thread.start()

    def close(self, seconds: float) -> None:
        """Stop; wait for a version that is being loaded for at most `seconds`."""
        self._ending.set()
        self._thread.join(seconds)
        with self._lock:
            self._has_closed = True
        loaded = self.take()
        if loaded is not None:
            loaded.close()

    def serve_none(self, error: Exception) -> None:
        """No version makes a first image: wait for another activation; before `start`."""
        if not self.refusal.version:
            self.refusal = Refusal(self._newest, _reason(error))
        self._newest, self._tried = "", self._registry.activation(self._name)

    def take(self) -> LoadedVersion | None:
        """A version that has become ready; handed out once. From any thread."""
        with self._lock:
            loaded, self._ready = self._ready, None
            return loaded

    def check(self) -> None:
        """Read the active version once, and load it if it is another one."""
        try:
            version = self._registry.current(self._name)
            activation = self._registry.activation(self._name)
        except MascError as error:
            logger.debug("the active version cannot be read: %s", error)
            return
        if version == self._newest:
            self.refusal = NO_REFUSAL
        elif activation != self._tried or version != self.refusal.version:
            self.refusal = NO_REFUSAL  # an earlier one says nothing about this try
            self._tried = activation
            self._prepare(version)

    def _prepare(self, version: str) -> None:
        logger.info("making %s %s ready", self._name, version)
        loaded: LoadedVersion | None = None
        try:
            loaded = self._load(self._registry.path(self._name, version))
            loaded.warm_up()
            is_wanted = (
                self._registry.current(self._name) == version
                and self._registry.activation(self._name) == self._tried
            )
        except StorageDownError as error:  # which says nothing about the version: to be tried again
            logger.warning("%s %s is not ready: %s", self._name, version, error)
            if loaded is not None:
                loaded.close()
        except Exception as error:  # whatever it is, the old version goes on
            reason = _reason(error)
            logger.exception("%s %s is refused", self._name, version)
            if loaded is not None:
                loaded.close()
            self.refusal = Refusal(version, reason)
        else:
            if not is_wanted:  # another one was activated meanwhile, or this one, changed, again
                loaded.close()
                return
            self._offer(loaded)
            self._newest, self.refusal = version, NO_REFUSAL

    def _offer(self, loaded: LoadedVersion) -> None:
        """Let a version be taken, instead of an earlier one that has not been."""
        with self._lock:
            if self._has_closed:
                superseded: LoadedVersion | None = loaded
            else:
                superseded, self._ready = self._ready, loaded
        if superseded is not None:
            superseded.close()

    def _run(self) -> None:
        while not self._ending.wait(self._poll_seconds):
            try:
                self.check()
            except Exception:
                logger.exception("looking for another version has failed")  # the next look may not
