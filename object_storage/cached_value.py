"""What was read from afar, kept for some seconds.

While the storage is away it is kept for as long as that takes: a value that is too old is returned
all the same, and read anew behind the caller's back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from masc_core.errors import ArtifactError

T = TypeVar("T")

logger = logging.getLogger(__name__)

KEPT_SECONDS = 5.0


class Kept(Generic[T]):
    """A value that is read from afar; ``read`` gets the one before, None the first time."""

    def __init__(self, read: Callable[[T | None], T]) -> None:
        self._read = read
        self._value: T | None = None
        self._failure: ArtifactError | None = None
        self._looked_at = 0.0
        self._reading = threading.Lock()

    def get(self) -> T:
        """The value: the first time, it is waited for; too old a one is read anew behind."""
        if self._value is None:
            with self._reading:
                if self._value is not None:
                    return self._value
                if self._failure is not None and not self._is_old:  # of who had the lock before
                    raise type(self._failure)(self._failure.path, self._failure.reason)
                return self._look(None)
        value = self._value
        if self._is_old and self._reading.acquire(blocking=False):
            threading.Thread(target=self._look_behind, daemon=True).start()
        return value

    def read_anew(self) -> T:
        """The value as it is now."""
        with self._reading:
            return self._look(None)

    @property
    def _is_old(self) -> bool:
        return time.monotonic() > self._looked_at + KEPT_SECONDS

    def _look(self, known: T | None) -> T:
        try:
            self._value = self._read(known)
        except ArtifactError as error:
            if self._failure is None and self._value is not None:
                logger.warning("%s; what was read before holds meanwhile", error)
            self._failure = error
            raise
        else:
            if self._failure is not None:
                logger.info("%s is there again", self._failure.path)
            self._failure = None
            return self._value
        finally:
            self._looked_at = time.monotonic()

    def _look_behind(self) -> None:
        try:
            with suppress(ArtifactError):
                self._look(self._value)
        finally:
            self._reading.release()
