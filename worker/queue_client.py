"""The worker's loop never waits for the queue while there is work: an outbox and an inbox.

A thread calls a remote queue: once for all reports in the outbox, and once to claim jobs of each
model, if there is room and one may have arrived. The loop itself calls a queue in this process,
between two steps.

While the queue is unreachable, outcomes are kept in order, events dropped, and requeued jobs return
when their leases expire. A slow queue costs previews first, then progress, never an outcome.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Self, TypeVar

from masc_core.errors import QueueDownError
from worker.jobs.job import Event, Lease, Preview, Progress
from worker.jobs.outcome import JobResult, Outcome
from worker.jobs.queue import REQUEUE, JobConsumer, JobReport, Requeue
from worker.jobs.tracing import Tracer, trace_job

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 0.5  # between two tries to reach an unreachable queue
STALE_SECONDS = 1.0  # after which a loop that has not asked gets no more jobs: it may hang
MAX_BATCH = 256  # reports in a call
MAX_BYTES = 1_000_000  # of images in a call, after which it takes no further report
MAX_OUTBOX = 1024  # reports in the outbox, before events are dropped

Answer = TypeVar("Answer")


class QueueClient:
    """One worker's calls of its queue, while the context lasts.

    At the end of the context every job that has not ended is given back. The methods are the
    loop's; only `leases` is for any thread.

    Parameters
    ----------
    queue : where jobs come from and reports go
    clock : monotonic seconds
    tracer : records every job whose end the queue takes; None where traces are off

    Attributes
    ----------
    jobs_at_risk : id of the job whose report has raised the latest error
    """

    def __init__(
        self,
        queue: JobConsumer,
        clock: Callable[[], float] = time.monotonic,
        *,
        tracer: Tracer | None = None,
    ) -> None:
        self._queue, self._clock, self._tracer = queue, clock, tracer
        self._changed = threading.Condition()  # guards whatever follows
        self._held: dict[str, Lease] = {}  # claimed, and not reported as ended
        self._inbox: list[Lease] = []
        self._outbox: deque[JobReport] = deque()
        self._sending: Sequence[JobReport] = ()
        self._max_batch = MAX_BATCH
        self._rows: Counter[str] = Counter()  # by model, free for its jobs, those in the inbox too
        self._asked_at = clock()  # when the loop said so
        self._is_claiming = False
        # Until when a model's queue counts as empty: its latest claim got none.
        self._empty_until: dict[str, float] = {}
        self._next_try = clock()
        self._is_down, self._is_closing = False, False
        self._error: Exception | None = None  # of the thread, for the loop
        self._thread: threading.Thread | None = None
        self.jobs_at_risk: set[str] = set()
        queue.on_arrival(self._arrived)

    def __enter__(self) -> Self:
        if self._queue.is_remote:
            self._thread = threading.Thread(target=self._run, name="queue-client", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            with self._changed:
                self._is_closing = True
                self._changed.notify_all()
            self._thread.join()
            self._thread = None
        self._outbox.extendleft((lease, REQUEUE) for lease in reversed(self._held.values()))
        self._held, self._inbox = {}, []
        for _try in range(len(self._outbox)):  # the worker ends, whatever fails
            try:
                self._send()
            except Exception:
                logger.exception("not everything could be reported")
                if self._outbox and self._outbox[0][0].job_id in self.jobs_at_risk:
                    self._outbox.popleft()  # an outcome, which would fail again
            else:
                break

    @property
    def is_flushed(self) -> bool:
        """Whether nothing is to be reported, and no job waits for the loop or is being claimed."""
        with self._changed:
            return not (self._outbox or self._sending or self._inbox or self._is_claiming)

    @property
    def leases(self) -> Sequence[Lease]:
        """Of all jobs whose end the queue does not know yet. From any thread."""
        with self._changed:
            unsent = (*self._sending, *self._outbox)
            ended = [lease for lease, report in unsent if isinstance(report, Outcome)]
            return [*self._held.values(), *ended]

    def claim(self, free_rows: Mapping[str, int], timeout: float) -> Sequence[Lease]:
        """Take the jobs that have been claimed, and let more be claimed if there is room.

        Parameters
        ----------
        free_rows : that the loop has for each model's jobs before it takes these
        timeout : seconds to wait for a job

        Raises
        ------
        Exception : an unexpected error of the queue since the last call
        """
        with self._changed:
            self._rows, self._asked_at = Counter(free_rows), self._clock()
            if self._thread is not None:
                self._wake()
            if timeout:
                self._changed.wait_for(self._can_stop_waiting, timeout)
        if self._thread is None:
            self._send_and_claim()
        with self._changed:
            if self._error is not None:
                error, self._error = self._error, None
                self._changed.notify_all()
                raise error
            leases, self._inbox = self._inbox, []
            for lease in leases:
                self._rows[lease.job.request.model] -= lease.job.request.batch_rows
        return leases

    def lost_leases(self, leases: Iterable[Lease]) -> set[str]:
        """Ids of the jobs that are no longer this worker's."""
        return self._queue.lost_leases(leases)

    def drop(self, lease: Lease) -> None:
        """Hold a lease no longer: it is lost."""
        with self._changed:
            held = self._held.get(lease.job_id)
            if held is not None and held.token == lease.token:  # else the job has come back
                del self._held[lease.job_id]

    def report(self, lease: Lease, report: Event | Outcome | Requeue) -> None:
        """Say what has happened to a job; it goes out with `flush`, if not before."""
        with self._changed:
            if not isinstance(report, Event):
                self.drop(lease)
            elif not self._can_try:
                return
            self._outbox.append((lease, report))
            for kind in (Preview, Progress):
                if len(self._outbox) > MAX_OUTBOX:
                    self._outbox = deque(x for x in self._outbox if not isinstance(x[1], kind))

    def flush(self) -> None:
        """Send what was reported: now, or beside the loop."""
        if self._thread is None:
            self._send()
        else:
            with self._changed:
                self._wake()

    @property
    def _can_try(self) -> bool:
        return not self._is_down or self._clock() >= self._next_try

    def _rows_to_claim(self, model: str) -> int:
        """Rows that may be claimed for; none where the queue of the model is known to be empty."""
        now = self._clock()
        if now < self._empty_until.get(model, now) or now - self._asked_at > STALE_SECONDS:
            return 0
        inbox = (lease.job.request for lease in self._inbox if lease.job.request.model == model)
        return self._rows[model] - sum(request.batch_rows for request in inbox)

    @property
    def _has_work(self) -> bool:
        """Whether there is something to report or to claim, and it may be tried."""
        has_room = any(self._rows_to_claim(model) > 0 for model in self._rows)
        return bool(self._outbox or has_room) and self._can_try

    def _can_stop_waiting(self) -> bool:
        """Whether a loop that has nothing to do need not wait any longer."""
        if self._thread is None:
            return self._has_work
        return bool(self._inbox) or self._error is not None

    def _wake(self) -> None:
        if self._has_work:  # else the thread would take time from the step for nothing
            self._changed.notify_all()

    def _arrived(self, model: str) -> None:
        with self._changed:
            if not model or model in self._rows:
                for name in (model,) if model else self._rows:
                    self._empty_until.pop(name, None)
                self._changed.notify_all()

    def _run(self) -> None:
        """Send and claim until the context ends; after an error, once the loop has raised it."""
        while True:
            with self._changed:
                now = self._clock()
                polls = (until for until in self._empty_until.values() if until > now)
                next_poll = min(polls, default=now + self._queue.poll_seconds)
                pause = max(next_poll, self._next_try) - now
                self._changed.wait_for(lambda: self._is_closing or self._has_work, pause)
                if self._is_closing:
                    return
            try:
                self._send_and_claim()
            except Exception as error:  # noqa: BLE001 - it is raised where the loop calls
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._is_closing or self._error is None)

    def _send_and_claim(self) -> None:
        self._send()
        self._claim()

    def _send(self) -> None:
        """Report what waits, in order.

        After an unexpected error reports go one by one, to find the one at fault.
        An event that causes one is lost, an outcome is not.
        """
        while self._outbox and self._can_try:
            batch = self._next_batch()
            outcomes = [report for report in batch if isinstance(report[1], Outcome)]
            now = time.time()  # before the client sees the end: a job's span ends in its request's
            try:
                answers = self._try(partial(self._queue.report, batch))
            except Exception:
                is_alone, self._max_batch = len(batch) == 1, 1
                self._end_call(outcomes if is_alone else batch)
                if is_alone:
                    self.jobs_at_risk = {batch[0][0].job_id}
                    raise
                continue
            self._end_call(outcomes if answers is None else ())
            if answers is None:
                return
            self._note_ends(batch, answers, now)
        self._max_batch = MAX_BATCH

    def _note_ends(self, batch: Sequence[JobReport], answers: Sequence[bool], now: float) -> None:
        for (lease, report), is_accepted in zip(batch, answers, strict=True):
            if not isinstance(report, Outcome):
                continue
            if not is_accepted:
                logger.warning("job %s: its lease was lost, the result is refused", lease.job_id)
            elif self._tracer is not None:
                trace_job(self._tracer, lease.job, report, now)

    def _next_batch(self) -> Sequence[JobReport]:
        batch: list[JobReport] = []
        num_bytes = 0
        with self._changed:
            while self._outbox and len(batch) < self._max_batch and num_bytes < MAX_BYTES:
                batch.append(self._outbox.popleft())
                num_bytes += _num_bytes(batch[-1][1])
            self._sending = batch
        return batch

    def _end_call(self, unsent: Sequence[JobReport]) -> None:
        """End a call; what it did not report goes back to the front of the outbox."""
        with self._changed:
            self._sending = ()
            self._outbox.extendleft(reversed(unsent))
            self._changed.notify_all()

    def _claim(self) -> None:
        with self._changed:
            models = tuple(self._rows)
        for model in models:  # each has rows of its own: none takes another's
            self._claim_for(model)

    def _claim_for(self, model: str) -> None:
        with self._changed:
            rows = self._rows_to_claim(model)
            if rows <= 0 or not self._can_try:
                return
            self._is_claiming = True
            self._empty_until[model] = self._clock() + self._queue.poll_seconds
        leases: Sequence[Lease] | None = None
        try:
            leases = self._try(partial(self._queue.claim, model, rows, 0.0))
        finally:
            with self._changed:
                self._is_claiming = False
                if leases or leases is None:
                    self._empty_until.pop(model, None)
                self._inbox += leases or ()
                self._held.update((lease.job_id, lease) for lease in leases or ())
                self._changed.notify_all()

    def _try(self, call: Callable[[], Answer]) -> Answer | None:
        """Call the queue; None while it is unreachable."""
        if not self._can_try:
            return None
        try:
            answer = call()
        except QueueDownError as error:
            if not self._is_down:
                logger.warning("the queue is unreachable: %s", error)
            self._is_down, self._next_try = True, self._clock() + PAUSE_SECONDS
            return None
        if self._is_down:
            logger.info("the queue is reachable again")
        self._is_down = False
        return answer


def _num_bytes(report: Event | Outcome | Requeue) -> int:
    match report:
        case Preview():
            return len(report.data)
        case JobResult():
            return sum(len(image.data) for image in report.images)
    return 0
