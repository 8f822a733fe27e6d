"""Loads the version that the registry names, beside the one that is served.

A thread polls the registry. Another version than is served is verified, loaded and warmed up while
the old one goes on; then the loop takes it. One that fails is refused, with the reason, until the
registry names another.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from masc_core.bundle.registry import Registry
from masc_core.errors import MascError
from worker.model.loaded_model import LoadedModel

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5


class Refusal(NamedTuple):
    """A version that cannot be served, and why; both empty where there is none."""

    version: str = ""
    reason: str = ""


class ModelReloader:
    """Follows the active version of one model, from `start` to `close`.

    Parameters
    ----------
    registry, name : the model
    serving : its version that is served
    load : loads a version from its folder
    """

    def __init__(
        self, registry: Registry, name: str, serving: str, load: Callable[[Path], LoadedModel]
    ) -> None:
        self._registry, self._name, self._load = registry, name, load
        self._newest = serving
        self._ready: LoadedModel | None = None
        self._lock = threading.Lock()
        self.refusal = Refusal()
        self._ending = threading.Event()
        self._has_closed = False
        self._thread = threading.Thread(target=self._run, name="reloader", daemon=True)

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

    def take(self) -> LoadedModel | None:
        """A version that has just become ready; handed out once. From any thread."""
        with self._lock:
            loaded, self._ready = self._ready, None
            return loaded

    def check(self) -> None:
        """Read the active version once, and load it if it is another one."""
        try:
            version = self._registry.current(self._name)
        except MascError as error:
            logger.debug("the active version cannot be read: %s", error)
            return
        if version == self._newest:
            self.refusal = Refusal()
        elif version != self.refusal.version:
            self._prepare(version)

    def _prepare(self, version: str) -> None:
        logger.info("making %s %s ready", self._name, version)
        loaded: LoadedModel | None = None
        try:
            loaded = self._load(self._registry.path(self._name, version))
            loaded.warm_up()
            is_wanted = self._registry.current(self._name) == version
        except Exception as error:  # whatever it is, the old version goes on
            reason = str(error) if isinstance(error, MascError) else "see the worker's log"
            logger.exception("%s %s is refused", self._name, version)
            if loaded is not None:
                loaded.close()
            self.refusal = Refusal(version, reason)
        else:
            if not is_wanted:  # another one was made active meanwhile
                loaded.close()
                return
            self._offer(loaded)
            self._newest, self.refusal = version, Refusal()

    def _offer(self, loaded: LoadedModel) -> None:
        """Let a version be taken, instead of an earlier one that has not been."""
        with self._lock:
            if self._has_closed:
                superseded: LoadedModel | None = loaded
            else:
                superseded, self._ready = self._ready, loaded
        if superseded is not None:
            superseded.close()

    def _run(self) -> None:
        while not self._ending.wait(POLL_SECONDS):
            try:
                self.check()
            except Exception:
                logger.exception("looking for another version has failed")  # the next look may not
