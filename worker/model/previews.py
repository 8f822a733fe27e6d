"""How much of the worker's time may go into pictures of what is not finished yet.

Credit grows with time, a twentieth of it by default, and up to a bound. A preview is made while
there is credit. It is paid for in advance with what the last one took, so that many which are due
at once do not all find the same credit, and the difference is settled when it is there. In the long
run previews take no more than their share, and one image alone still gets some.
"""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 0.05
MAX_CREDIT = 0.05  # seconds


class PreviewBudget:
    """Seconds that may be spent.

    Parameters
    ----------
    share : of the time
    clock : seconds from any origin, never going back
    """

    def __init__(
        self, share: float = SHARE, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._share, self._clock = share, clock
        self._credit, self._since = MAX_CREDIT, clock()
        self._price = MAX_CREDIT  # what the last one took; of the first nothing is known

    def pay(self) -> float | None:
        """Pay for a preview, if there is credit.

        Returns
        -------
        what was paid, for `settle`; None where no preview may be made now
        """
        now = self._clock()
        self._credit = min(MAX_CREDIT, self._credit + self._share * (now - self._since))
        self._since = now
        if self._credit <= 0:
            return None
        self._credit -= self._price
        return self._price

    def settle(self, paid: float, seconds: float) -> None:
        """A preview that was paid for has taken so long; one that came to nothing stays paid."""
        self._credit += paid - seconds
        self._price = seconds
