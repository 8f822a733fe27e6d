"""The versions of one model that a worker has loaded: the newest, and those that it superseded.

New jobs go to the newest. A version that was superseded ends with what it has, and stays a little
longer for jobs that were submitted for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from worker.model.loaded_model import Lane

RETIRE_SECONDS = 10.0
MAX_LOADED = 2  # beyond, a version goes as soon as it has nothing to do


@dataclass(frozen=True, slots=True)
class _Retired:
    lane: Lane
    since: float


class Lanes:
    """Who is there, oldest first.

    Parameters
    ----------
    first : what is served at first
    clock : seconds from any origin, never going back
    """

    def __init__(self, first: Lane, clock: Callable[[], float] = time.monotonic) -> None:
        self.newest = first
        self._retired: list[_Retired] = []
        self._clock = clock

    def __iter__(self) -> Iterator[Lane]:
        """All of them."""
        return iter([*(retired.lane for retired in self._retired), self.newest])

    @property
    def free_rows(self) -> int:
        """Rows that can be given work: those of the newest, less what waits for an older one.

        Otherwise jobs for an older one, which take none of the newest's rows, would be claimed
        without end.
        """
        waiting = sum(retired.lane.rows_waiting for retired in self._retired)
        return self.newest.free_rows - waiting

    def of(self, version: str) -> Lane:
        """The lane of a version, or else the newest."""
        found = (lane for lane in self if lane.manifest.version == version)
        return next(found, self.newest)

    def add(self, lane: Lane) -> None:
        """Let a lane be the newest."""
        self._retired.append(_Retired(self.newest, self._clock()))
        self.newest = lane

    def sweep(self) -> None:
        """Close those that have nothing to do, and are not waited with."""
        for retired in [one for one in self._retired if one.lane.is_idle]:
            age = self._clock() - retired.since
            if age > RETIRE_SECONDS or len(self._retired) >= MAX_LOADED:
                self._retired.remove(retired)
                retired.lane.close()

    def close(self) -> None:
        """End all of them."""
        for lane in self:
            lane.close()
