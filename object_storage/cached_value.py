"""A value of the storage, cached for some seconds: stale while it is refreshed.

A value that is too old is returned all the same, and refreshed in the background. So it stays for
as long as the storage is unreachable.
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

FRESH_SECONDS = 5.0


class CachedValue(Generic[T]):
    """A value of the storage; ``read`` gets the one before, None the first time."""

    def __init__(self, read: Callable[[T | None], T]) -> None:
        self._read = read
        self._value: T | None = None
        self._failure: ArtifactError | None = None
        self._tried_at = 0.0
        self._reading = threading.Lock()

    def get(self) -> T:
        """The value: the first time it is read now, later refreshed in the background if stale."""
        if self._value is None:
            with self._reading:
                if self._value is not None:
                    return self._value
                if self._failure is not None and not self._is_stale:  # of who had the lock before
                    raise type(self._failure)(self._failure.path, self._failure.reason)
                return self._refresh(None)
        value = self._value
        if self._is_stale and self._reading.acquire(blocking=False):
            threading.Thread(target=self._refresh_in_background, daemon=True).start()
        return value

    def refresh(self) -> T:
        """The value as it is now."""
        with self._reading:
            return self._refresh(None)

    @property
    def _is_stale(self) -> bool:
        return time.monotonic() > self._tried_at + FRESH_SECONDS

    def _refresh(self, known: T | None) -> T:
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
            self._tried_at = time.monotonic()

    def _refresh_in_background(self) -> None:
        try:
            with suppress(ArtifactError):
                self._refresh(self._value)
        finally:
            self._reading.release()
