"""A stopwatch for bounds that tests set: it does not count what the machine takes from them."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

TICK = 0.005  # seconds
MOST = 0.02  # of them between two ticks count, or the processor's time if that is more


class Stopwatch:
    """Measures between enter and exit how long this process ran or could have run, as `seconds`.

    While a machine is busy with others, whoever measures by the clock measures that. A thread that
    does nothing but tick sees it: it is late, although nothing of this process ran. So work counts,
    waiting for another process counts, asleep or in an event loop, and being held up does not.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = self._looked = self._worked = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        self._looked, self._worked = time.monotonic(), time.process_time()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._look()
        self._stopping.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        """Since enter, and until exit."""
        if not self._stopping.is_set():
            self._look()
        return self._seconds

    def _tick(self) -> None:
        while not self._stopping.wait(TICK):
            self._look()

    def _look(self) -> None:
        with self._lock:
            now, worked = time.monotonic(), time.process_time()
            passed = now - self._looked
            self._seconds += min(passed, max(MOST, worked - self._worked))
            self._looked, self._worked = now, worked
