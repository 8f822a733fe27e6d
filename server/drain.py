"""Whether a front end still takes work, and how much it has.

When it is told to stop, it is not ready at once and refuses new work, and what it has accepted is
finished first. It listens a little longer, so that whoever comes is told where it stands.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from masc_core.errors import DrainingError

LISTEN_SECONDS = 1.0  # at least, after it was told to stop
RETRY_AFTER = 1.0  # by then another front end takes its place


class Drain:
    """The state of one front end. Used by the thread of its event loop.

    Parameters
    ----------
    max_seconds : that the work may take, once it was told to stop
    clock : seconds from any origin, never going back
    """

    def __init__(self, max_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_seconds, self._clock = max_seconds, clock
        self._since: float | None = None
        self._num_working = 0

    @property
    def is_draining(self) -> bool:
        """Whether it was told to stop."""
        return self._since is not None

    @property
    def is_over(self) -> bool:
        """Whether the process can end."""
        if self._since is None:
            return False
        age = self._clock() - self._since
        return age >= self._max_seconds or (age >= LISTEN_SECONDS and not self._num_working)

    def begin(self) -> None:
        """Take no more work; also from a signal handler."""
        if self._since is None:
            self._since = self._clock()

    def check(self) -> None:
        """Refuse new work while draining.

        Raises
        ------
        DrainingError
        """
        if self.is_draining:
            raise DrainingError("this server is about to stop", RETRY_AFTER)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work is under way."""
        self._num_working += 1
        try:
            yield
        finally:
            self._num_working -= 1
