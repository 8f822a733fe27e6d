"""Coroutines that wait for a change of a job, woken from any thread.

What has changed is not carried along: whoever is woken asks the queue.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Changed:
    """An `asyncio.Event` that any thread may set, for one coroutine."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    async def wait(self, seconds: float | None = None) -> None:
        """Return once it was set since the last return, or after so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._event.clear()

    def set(self) -> None:
        """Wake the coroutine; from any thread."""
        with suppress(RuntimeError):  # its loop has ended, and with it whoever waited
            self._loop.call_soon_threadsafe(self._event.set)


class Watchers:
    """Who waits for which job."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed: defaultdict[str, list[Changed]] = defaultdict(list)

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Changed]:
        """Watch a job for as long as the context lasts."""
        changed = Changed()
        with self._lock:
            self._changed[job_id].append(changed)
        try:
            yield changed
        finally:
            with self._lock:
                self._changed[job_id].remove(changed)
                if not self._changed[job_id]:
                    del self._changed[job_id]

    def notify(self, job_id: str) -> None:
        """Wake whoever watches a job."""
        with self._lock:
            watching = tuple(self._changed.get(job_id, ()))
        for changed in watching:
            changed.set()

    def notify_all(self) -> None:
        """Wake everybody: any job may have changed."""
        with self._lock:
            watching = [changed for watchers in self._changed.values() for changed in watchers]
        for changed in watching:
            changed.set()

    @property
    def watched(self) -> frozenset[str]:
        """Ids of the jobs that somebody waits for."""
        with self._lock:
            return frozenset(self._changed)
