"""A stopwatch for bounds that tests set: it does not count what the machine takes from them."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

TICK = 0.005  # seconds
MOST = 0.02  # of them between two ticks; whatever is over, nothing ran in this process


class Stopwatch:
    """Measures between enter and exit how long this process could have run, as `seconds`.

    While a machine is busy with others, whoever measures by the clock measures that. A thread that
    does nothing but tick sees it: it is late. So waiting for another process counts, asleep or in
    an event loop, and being held up does not.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = 0.0
        self._looked = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Self:
        self._looked = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        """Since enter."""
        with self._lock:
            now = time.monotonic()
            self._seconds += min(now - self._looked, MOST)
            self._looked = now
            return self._seconds

    def _tick(self) -> None:
        while not self._stopping.wait(TICK):
            _ = self.seconds
