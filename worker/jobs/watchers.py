"""Coroutines that wait for news of a job, woken from any thread.

News are not carried along, only that there are some: whoever is woken looks for itself.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class News:
    """What one coroutine waits at."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    async def wait(self, seconds: float | None = None) -> None:
        """Return once there are news since the last return, or after so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._event.clear()

    def notify(self) -> None:
        """There are news; from any thread."""
        with suppress(RuntimeError):  # its loop has ended, and with it whoever waited
            self._loop.call_soon_threadsafe(self._event.set)


class Watchers:
    """Who waits for which job."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._news: defaultdict[str, list[News]] = defaultdict(list)

    @contextmanager
    def watch(self, job_id: str) -> Iterator[News]:
        """Be told of a job for as long as the context lasts."""
        news = News()
        with self._lock:
            self._news[job_id].append(news)
        try:
            yield news
        finally:
            with self._lock:
                self._news[job_id].remove(news)
                if not self._news[job_id]:
                    del self._news[job_id]

    def notify(self, job_id: str) -> None:
        """There are news of a job."""
        with self._lock:
            watching = tuple(self._news.get(job_id, ()))
        for news in watching:
            news.notify()

    def notify_all(self) -> None:
        """There may be news of any job."""
        with self._lock:
            watching = [news for together in self._news.values() for news in together]
        for news in watching:
            news.notify()

    @property
    def watched(self) -> frozenset[str]:
        """Ids of the jobs that somebody waits for."""
        with self._lock:
            return frozenset(self._news)
