"""The shutdown of a front end: refuse new work, finish what was accepted, then end.

It listens a little longer even without work, so that load balancers see that it is not ready.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from masc_core.errors import DrainingError

LISTEN_SECONDS = 1.0  # at least, after the signal
RETRY_AFTER = 1.0  # by then another front end has taken over


class Drain:
    """The state of one front end; not thread-safe.

    Parameters
    ----------
    max_seconds : for the accepted work, after the signal
    clock : monotonic seconds
    """

    def __init__(self, max_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_seconds, self._clock = max_seconds, clock
        self._since: float | None = None
        self._num_working = 0
        self._is_aborted = False
        self._waiting: set[asyncio.Future[None]] = set()
        self._releasing: set[asyncio.Future[None]] = set()

    @property
    def is_draining(self) -> bool:
        """Whether `begin` was called."""
        return self._since is not None

    @property
    def is_over(self) -> bool:
        """Whether the process can end: no work is left, or the time is up."""
        if self._since is None:
            return False
        age = self._clock() - self._since
        return age >= self._max_seconds or (age >= LISTEN_SECONDS and not self._num_working)

    @property
    def is_aborted(self) -> bool:
        """Whether `abort` was called."""
        return self._is_aborted

    def begin(self) -> None:
        """Take no more work; also from a signal handler."""
        if self._since is None:
            self._since = self._clock()

    def check(self) -> None:
        """Raise `DrainingError` while draining."""
        if self.is_draining:
            raise self.error()

    def error(self) -> DrainingError:
        """Why a request gets nothing from this front end."""
        return DrainingError("this server is about to stop", RETRY_AFTER)

    def abort(self) -> None:
        """Let everyone who still waits for work stop waiting, and tell the client why."""
        self._is_aborted = True
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    async def until_aborted(self) -> None:
        """Return when `abort` was called."""
        if self._is_aborted:
            return
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)

    async def release(self, releasing: Coroutine[Any, Any, None]) -> None:
        """Release a job even if the caller is cancelled meanwhile."""
        task = asyncio.ensure_future(releasing)
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)
        await asyncio.shield(task)

    async def until_released(self) -> None:
        """Wait for what `release` began, before the queue is closed."""
        await asyncio.gather(*self._releasing, return_exceptions=True)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Keep the process alive while the block runs."""
        self._num_working += 1
        try:
            yield
        finally:
            self._num_working -= 1
