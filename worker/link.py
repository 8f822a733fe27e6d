"""The queue as the worker's loop sees it: one that may be away for a while.

While it is away nothing comes from it, what is told to watchers is lost, and outcomes wait in order
until they can be reported. The loop goes on with what it has.
This module does not know what jobs are for.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from masc_core.errors import QueueDownError
from worker.jobs.event import Event
from worker.jobs.job import Lease
from worker.jobs.outcome import Outcome
from worker.jobs.queue import JobConsumer

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 0.5  # between two tries to reach it

Answer = TypeVar("Answer")


class Link:
    """One worker's link to its queue. Used by one thread.

    Parameters
    ----------
    queue : where jobs come from and outcomes go
    clock : seconds from any origin, never going back
    """

    def __init__(self, queue: JobConsumer, clock: Callable[[], float] = time.monotonic) -> None:
        self._queue, self._clock = queue, clock
        self._outbox: deque[tuple[Lease, Outcome]] = deque()
        self._next_try = clock()
        self._is_down = False

    @property
    def is_clear(self) -> bool:
        """Whether every outcome has been reported."""
        return not self._outbox

    def claim(self, model: str, max_rows: int, timeout: float) -> Sequence[Lease]:
        """Claim jobs; none while the queue is away, after waiting as long."""
        claimed = self._try(lambda: self._queue.claim(model, max_rows, timeout))
        if claimed is None:
            time.sleep(timeout)
            return ()
        return claimed

    def abandoned(self, leases: Iterable[Lease]) -> set[str]:
        """Ids of the jobs that are no longer this worker's."""
        return self._queue.abandoned(leases)

    def emit(self, lease: Lease, event: Event) -> None:
        """Tell whoever watches the job."""
        self._try(lambda: self._queue.emit(lease, event))

    def finish(self, lease: Lease, outcome: Outcome) -> None:
        """Report the end of a job, now or when the queue is there again."""
        self._outbox.append((lease, outcome))
        self.flush()

    def flush(self) -> None:
        """Report what waits."""
        while self._outbox:
            lease, outcome = self._outbox[0]
            accepted = self._try(lambda: self._queue.finish(lease, outcome))  # noqa: B023 - at once
            if accepted is None:
                return
            if not accepted:
                logger.warning("job %s: the result came too late, it is refused", lease.job_id)
            self._outbox.popleft()

    def hand_back(self, leases: Sequence[Lease]) -> None:
        """Give jobs back; if the queue is away they come back to it when their leases end."""
        if leases:
            self._try(lambda: self._queue.hand_back(leases))

    def _try(self, call: Callable[[], Answer]) -> Answer | None:
        """Call the queue; None while it is away."""
        if self._is_down and self._clock() < self._next_try:
            return None
        try:
            answer = call()
        except QueueDownError as error:
            if not self._is_down:
                logger.warning("the queue is away: %s", error)
            self._is_down, self._next_try = True, self._clock() + PAUSE_SECONDS
            return None
        if self._is_down:
            logger.info("the queue is there again")
        self._is_down = False
        return answer
