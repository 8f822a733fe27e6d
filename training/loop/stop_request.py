"""The wish to stop, between two steps."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Self


class StopRequest:
    """Turn the first SIGINT or SIGTERM into a request that the loop honours between two steps."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        except ValueError:  # only the main thread may set handlers
            self._previous.clear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        # Who presses Ctrl-C twice does not want to wait; a scheduler sends SIGTERM more than once.
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
