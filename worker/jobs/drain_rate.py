"""How fast a queue drains, and when to come back to one that is full."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_SECONDS = 30.0
DEFAULT_RETRY_AFTER = 5.0
MAX_RETRY_AFTER = 120.0


class DrainRate:
    """Jobs finished per second, over the last half minute or since the queue last was empty.

    An idle spell is left out: it says nothing about how fast a full queue drains.

    Parameters
    ----------
    clock : seconds from any origin, never going back
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._finished: deque[float] = deque()
        self._since = clock()

    def restart(self) -> None:
        """Forget what was: the queue was empty, and is not any more."""
        self._finished.clear()
        self._since = self._clock()

    def count(self) -> None:
        """One more job has finished."""
        self._finished.append(self._clock())
        self._forget()

    def per_second(self) -> float:
        """The rate; 0 when nothing has finished."""
        self._forget()
        span = min(WINDOW_SECONDS, self._clock() - self._since)
        return len(self._finished) / max(span, 0.1)

    def _forget(self) -> None:
        horizon = self._clock() - WINDOW_SECONDS
        while self._finished and self._finished[0] < horizon:
            self._finished.popleft()


def retry_after(depth: int, drain_rate: float) -> float:
    """Seconds after which half of a full queue will have drained, so that a new try finds room.

    Between 1 second and two minutes; 5 seconds while the rate is unknown.
    """
    if drain_rate <= 0:
        return DEFAULT_RETRY_AFTER
    return min(max(depth / 2 / drain_rate, 1.0), MAX_RETRY_AFTER)
