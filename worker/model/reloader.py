"""The version that comes after the one that is served, made ready beside it.

A thread looks which version of the model the registry names. When it is another one than is served,
it is verified, loaded and made to draw an image, while the old one goes on; then it can be taken.
One that fails is refused, with the reason, until the registry names another.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from masc_core.bundle.registry import Registry
from masc_core.errors import MascError
from worker.model.loaded_model import Lane

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5


class Refusal(NamedTuple):
    """A version that cannot be served, and why; both empty where there is none."""

    version: str = ""
    reason: str = ""


class Successor:
    """Looks after one model, from `start` to `close`.

    Parameters
    ----------
    registry, name : the model
    serving : its version that is served
    load : makes a lane of a version's folder
    """

    def __init__(
        self, registry: Registry, name: str, serving: str, load: Callable[[Path], Lane]
    ) -> None:
        self._registry, self._name, self._load = registry, name, load
        self._newest = serving
        self._ready: Lane | None = None
        self._lock = threading.Lock()
        self.refusal = Refusal()
        self._ending = threading.Event()
        self._has_closed = False
        self._thread = threading.Thread(target=self._run, name="successor", daemon=True)

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def close(self, seconds: float) -> None:
        """End; a version that is being made ready is waited for so long, and left to itself."""
        self._ending.set()
        self._thread.join(seconds)
        with self._lock:
            self._has_closed = True
        lane = self.take()
        if lane is not None:
            lane.close()

    def take(self) -> Lane | None:
        """A lane that has just become ready; handed out once. From any thread."""
        with self._lock:
            lane, self._ready = self._ready, None
            return lane

    def look(self) -> None:
        """Look at the registry once, and do what is to be done."""
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
        lane: Lane | None = None
        try:
            lane = self._load(self._registry.path(self._name, version))
            lane.warm_up()
            is_wanted = self._registry.current(self._name) == version
        except Exception as error:  # whatever it is, the old version goes on
            reason = str(error) if isinstance(error, MascError) else "see the worker's log"
            logger.exception("%s %s is refused", self._name, version)
            if lane is not None:
                lane.close()
            self.refusal = Refusal(version, reason)
        else:
            if not is_wanted:  # another one was made active meanwhile
                lane.close()
                return
            self._offer(lane)
            self._newest, self.refusal = version, Refusal()

    def _offer(self, lane: Lane) -> None:
        """Let a lane be taken, instead of one that has not been."""
        with self._lock:
            if self._has_closed:
                superseded: Lane | None = lane
            else:
                superseded, self._ready = self._ready, lane
        if superseded is not None:
            superseded.close()

    def _run(self) -> None:
        while not self._ending.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception:
                logger.exception("looking for another version has failed")  # the next look may not
