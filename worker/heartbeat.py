"""A worker's heartbeat: a thread that renews its leases and announces its statuses.

When a step hangs, the thread announces that the worker is not ready and renews nothing, so that
other workers get the jobs. When the loop goes on, so does the heartbeat.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Self

from masc_core.errors import QueueDownError
from worker.jobs.job import Lease
from worker.jobs.queue import JobConsumer, WorkerStatus

logger = logging.getLogger(__name__)

MAX_PAUSE_SECONDS = 1.0


class Heartbeat:
    """The thread, while the context lasts; its end removes the worker from the list.

    After a failure the worker stays listed, as not ready.

    Parameters
    ----------
    queue : where leases are renewed and statuses are announced
    worker_ids : names under which the worker announces itself, one per model
    leases : returns those that are held
    stall_seconds : without a step, after which the loop counts as hanging
    clock : monotonic seconds
    """

    def __init__(
        self,
        queue: JobConsumer,
        worker_ids: Iterable[str],
        leases: Callable[[], Sequence[Lease]],
        stall_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue, self._leases, self._clock = queue, leases, clock
        self._stall_seconds = stall_seconds
        self._pause = min(MAX_PAUSE_SECONDS, queue.lease_seconds / 3, stall_seconds / 3)
        self._lock = threading.Lock()
        self._statuses = {name: WorkerStatus(name, ready=False) for name in worker_ids}
        self._last_beat: float | None = None
        self._stall = ""  # why the worker is not ready, while it hangs
        self._is_draining, self._has_ended = False, False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        with self._lock:
            for status in self._statuses.values():
                if failure is None:
                    self._try(partial(self._queue.remove_worker, status.worker_id))
                elif status.ready:
                    self._send(replace(status, ready=False, detail="failed, see the log"))
            self._has_ended = True

    @property
    def statuses(self) -> Sequence[WorkerStatus]:
        """What the loop announced last of each model, unless it hangs or drains."""
        return [self._current(status) for status in tuple(self._statuses.values())]

    def _current(self, status: WorkerStatus) -> WorkerStatus:
        if self._stall:
            return replace(status, ready=False, detail=self._stall)
        if self._is_draining and status.ready:
            return replace(status, ready=False, detail="draining")
        return status

    def announce(self, status: WorkerStatus) -> None:
        """Announce the status of a model, now and with every beat."""
        with self._lock:
            self._statuses[status.worker_id] = status
            self._send(status)

    def drain(self) -> None:
        """Announce the worker as not ready from now on. From any thread."""
        with self._lock:
            self._is_draining = True
            self._send_statuses()

    def beat(self) -> None:
        """Note that the loop runs; before the first call it cannot count as hanging."""
        self._last_beat = self._clock()

    def check(self) -> None:
        """Renew and announce, or find that the loop hangs."""
        now = self._clock()
        silence = now - (now if self._last_beat is None else self._last_beat)
        if silence > self._stall_seconds:
            if not self._stall:
                logger.error("no step has ended for %.1f s: the worker is not ready", silence)
            self._stall = f"no step has ended for {silence:.0f} s"
        else:
            if self._stall:
                logger.warning("the loop has resumed")
            self._stall = ""
            self._try(lambda: self._queue.renew(self._leases()))
        with self._lock:
            self._send_statuses()

    def _run(self) -> None:
        while not self._ending.wait(self._pause):
            try:
                self.check()
            except Exception:
                logger.exception("the heartbeat failed")  # the next one may not

    def _send_statuses(self) -> None:
        for status in self._statuses.values():
            self._send(status)

    def _send(self, status: WorkerStatus) -> None:
        if not self._has_ended:
            self._try(lambda: self._queue.announce(self._current(status)))

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except QueueDownError as error:
            logger.debug("not sent: %s", error)
