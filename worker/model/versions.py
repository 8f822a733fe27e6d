"""The versions of one model that a worker has loaded: the newest, and those that it superseded.

New jobs go to the newest. A version that was superseded ends with what it has, and stays a little
longer for jobs that were submitted for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from worker.model.loaded_model import LoadedModel

RETIRE_SECONDS = 10.0
MAX_LOADED = 2  # beyond, a version goes as soon as it has nothing to do


@dataclass(frozen=True, slots=True)
class _Retired:
    loaded: LoadedModel
    since: float


class ModelVersions:
    """The loaded versions, oldest first.

    Parameters
    ----------
    first : what is served at first
    clock : seconds from any origin, never going back
    """

    def __init__(self, first: LoadedModel, clock: Callable[[], float] = time.monotonic) -> None:
        self.newest = first
        self._retired: list[_Retired] = []
        self._clock = clock

    def __iter__(self) -> Iterator[LoadedModel]:
        """All of them."""
        return iter([*(retired.loaded for retired in self._retired), self.newest])

    @property
    def free_rows(self) -> int:
        """Rows that can be given work: those of the newest, less what waits for an older one.

        Otherwise jobs for an older one, which take none of the newest's rows, would be claimed
        without end.
        """
        waiting = sum(retired.loaded.rows_waiting for retired in self._retired)
        return self.newest.free_rows - waiting

    def of(self, version: str) -> LoadedModel:
        """The version of that name, or else the newest."""
        found = (loaded for loaded in self if loaded.manifest.version == version)
        return next(found, self.newest)

    def add(self, loaded: LoadedModel) -> None:
        """Make this version the newest."""
        self._retired.append(_Retired(self.newest, self._clock()))
        self.newest = loaded

    def sweep(self) -> None:
        """Close superseded versions that are idle and were kept long enough."""
        for retired in [one for one in self._retired if one.loaded.is_idle]:
            age = self._clock() - retired.since
            if age > RETIRE_SECONDS or len(self._retired) >= MAX_LOADED:
                self._retired.remove(retired)
                retired.loaded.close()

    def close(self) -> None:
        """Close all of them."""
        for loaded in self:
            loaded.close()
