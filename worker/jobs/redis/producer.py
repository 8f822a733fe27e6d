"""The front end's side of the queue in Redis.

However many wait, there are three connections: for calls, for results, and for messages.
`get_result` registers the front end for messages about the job in the same step, so none is missed.
While Redis is unreachable, whoever waits goes on waiting, and everybody asks again when it is back.
See `worker.jobs.queue` for what the methods do.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Literal, Self

from masc_core.errors import (
    CapacityError,
    IdempotencyConflictError,
    PoisonJobError,
    QueueDownError,
    QueueFullError,
    ResultGoneError,
    ShareExceededError,
    UnknownJobError,
)
from worker.jobs.fair import cost_of, flow_of
from worker.jobs.job import Job, NumberedEvent
from worker.jobs.outcome import CANCELLED, EXPIRED, JobFailure, Outcome
from worker.jobs.priority import PRIORITIES, Priority
from worker.jobs.queue import (
    END_STATES,
    REDELIVERIES,
    JobStatus,
    ModelStats,
    PriorityStats,
    QueueLimits,
    QueueStats,
    Receipt,
    Totals,
    WorkerStatus,
    retry_after,
)
from worker.jobs.redis.client import AsyncScriptRunner, QueueNamespace, milliseconds
from worker.jobs.redis.codec import (
    CodecError,
    decode_event,
    decode_job,
    decode_outcome,
    decode_worker,
    encode_job,
)
from worker.jobs.redis.connection import RETRY_AFTER, RETRY_SECONDS, connect_async
from worker.jobs.redis.pubsub import PubSubTask
from worker.jobs.watchers import Watchers

logger = logging.getLogger(__name__)

CALL_SECONDS = 0.65  # so that a client hears within a second that the queue is unreachable
RESULT_CALL_TIMEOUT = 10.0  # an outcome may be large, and its reader waits for it anyway
REPOLL_SECONDS = 5.0  # between two looks at a job of which nothing is heard: messages can be lost
WORKERS_SECONDS = 1.0  # for which the list of workers is kept without a message about them
MAX_CHANGED = 100  # workers of which messages told, beyond which all are read
EVENT_PAGE_SIZE = 32
MAX_CANCELLED_TOGETHER = 128
MAX_LOGGED = 1000
POISONED = JobFailure(
    PoisonJobError.__name__, "workers were lost while they ran the job, again and again"
)
OUTCOME_OF_STATE: dict[str, Outcome] = {  # where no worker reported one
    "cancelled": CANCELLED,
    "expired": EXPIRED,
    "error": POISONED,
}


class RedisProducer:
    """See `JobProducer`."""

    def __init__(self, url: str, limits: QueueLimits, namespace: QueueNamespace) -> None:
        self._url, self._limits, self._namespace = url, limits, namespace
        self._front_id = uuid.uuid4().hex[:12]
        self._watchers = Watchers()
        self._logged: set[str] = set()  # what could not be read
        self._unconfirmed: set[str] = set()  # ids of jobs whose submission was not answered

    async def __aenter__(self) -> Self:
        """Connect; if Redis is unreachable, when it comes."""
        self._connections = connect_async(self._url, self._namespace.keys)
        self._calls = AsyncScriptRunner(self._connections, self._namespace, CALL_SECONDS)
        self._results = AsyncScriptRunner(self._connections, self._namespace, RESULT_CALL_TIMEOUT)
        self._worker_list = _WorkerList(self._calls, self._unreadable)
        prefix = self._namespace.channels
        self._front_channel = f"{prefix}front:{self._front_id}"
        self._quarantine_channel = f"{prefix}unreadable"
        channels = (self._front_channel, self._quarantine_channel, f"{prefix}workers")
        self._pubsub = PubSubTask(self._connections, channels, self._on_message, self._on_connected)
        for calls in (self._calls, self._results):
            calls.on_failover = self._pubsub.reconnect
            calls.on_down = self._worker_list.has_changed
        await self._pubsub.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Disconnect; the jobs stay."""
        await self._pubsub.close()
        await self._calls.close()
        await self._results.close()
        await self._connections.aclose()

    async def submit(self, job: Job, share: float = 1.0, weight: float = 1.0) -> Receipt:
        """Accept a job."""
        name, fingerprint = "", ""
        if job.idempotency is not None:
            name = f"{len(job.owner)}:{job.owner}:{job.idempotency.key}"
            fingerprint = job.idempotency.fingerprint
        max_jobs = self._limits.max_jobs
        try:
            answer, *details = await self._calls.run(
                "submit",
                *(job.id, encode_job(job), job.request.model, job.request.batch_rows),
                flow_of(job.owner, job.priority),
                *(milliseconds(job.timeout), milliseconds(job.submitted_at), int(job.keep)),
                *(name, fingerprint, max(1, int(share * max_jobs)) if share < 1 else max_jobs + 1),
                *(job.priority, cost_of(job, weight)),
            )
        except QueueDownError:
            if job.idempotency is None:  # of others somebody may still wait for it
                self._unconfirmed.add(job.id)
            self._worker_list.has_changed()
            raise
        match answer:
            case b"new" | b"known":
                return Receipt(details[0].decode(), is_new=answer == b"new")
            case b"conflict":
                raise IdempotencyConflictError(
                    "Idempotency-Key", "the idempotency key was used for another request"
                )
        wait = retry_after(details[0], float(details[1]))
        if answer == b"full":
            raise QueueFullError(f"{details[0]} jobs wait already, no more are taken", wait)
        raise ShareExceededError(f"{details[2]} jobs of this client wait already", wait)

    async def outcome(self, job_id: str) -> Outcome:
        """Wait for the end of a job."""
        with self._watchers.watch(job_id) as changed:
            while True:
                state, rest, _ = await self._get_result(job_id)
                if state in END_STATES:
                    break
                await changed.wait(min(rest / 1000, REPOLL_SECONDS))
        if not rest and state in OUTCOME_OF_STATE:
            return OUTCOME_OF_STATE[state]
        try:
            return decode_outcome(rest)
        except CodecError as error:
            raise await self._unreadable("an outcome", error) from error

    async def events(self, job_id: str, after: int = 0) -> AsyncIterator[NumberedEvent]:
        """Events of a job."""
        with self._watchers.watch(job_id) as changed:
            while True:
                state, rest, events = await self._get_result(job_id, after, EVENT_PAGE_SIZE)
                for number, data in events:
                    after = number
                    try:
                        event = decode_event(data)
                    except CodecError as error:
                        await self._unreadable("an event", error)
                    else:
                        yield NumberedEvent(number, event)
                if len(events) == EVENT_PAGE_SIZE:
                    continue
                if state in END_STATES:
                    return
                await changed.wait(min(rest / 1000, REPOLL_SECONDS))

    async def status(self, job_id: str) -> JobStatus:
        """Where a job is."""
        status = await self._calls.run("status", job_id)
        if status is None:
            raise _unknown(job_id)
        data, state, deliveries, position, rate = status
        try:
            return JobStatus(decode_job(data), state.decode(), position, deliveries, float(rate))
        except CodecError as error:
            raise await self._unreadable("a job", error) from error

    async def cancel(
        self, job_id: str, state: Literal["cancelled", "expired"] = "cancelled"
    ) -> None:
        """End a job without images."""
        await self._calls.run("cancel", job_id, state)

    async def cancel_all(
        self,
        owner: str,
        priority: Priority | None = None,
        state: Literal["waiting", "running"] | None = None,
    ) -> int:
        """Cancel an owner's jobs, some in each call, so that none takes long."""
        flows = [flow_of(owner, priority or each) for each in PRIORITIES]
        live, num_cancelled = await self._calls.run("live_jobs"), 0
        for first in range(0, len(live), MAX_CANCELLED_TOGETHER):
            some = live[first : first + MAX_CANCELLED_TOGETHER]
            num_cancelled += await self._calls.run("cancel_all", *flows, state or "", *some)
        return num_cancelled

    async def forget(self, job_id: str) -> None:
        """Keep the outcome no longer, unless the job says so."""
        await self._calls.run("forget", job_id)

    async def count_request(self, client: str, per_minute: int) -> float:
        """Count a request in its client's window of a minute."""
        milliseconds_left = await self._calls.run("count_request", client, per_minute)
        return float(milliseconds_left) / 1000

    async def stats(self) -> QueueStats:
        """State of the queue."""
        depth, running, totals, models, by_priority = await self._calls.run("stats")
        pairs = zip(*[iter(totals)] * 2, strict=True)
        counts = {name.decode(errors="replace"): int(n) for name, n in pairs if n.isdigit()}
        of_models = {
            name.decode(errors="replace"): ModelStats(depth, milliseconds / 1000, float(rate))
            for name, depth, milliseconds, rate in models
        }
        priorities = {
            priority: PriorityStats(num, milliseconds / 1000)
            for priority, (num, milliseconds) in zip(PRIORITIES, by_priority, strict=True)
        }
        oldest_age = max(stats.oldest_age for stats in priorities.values())
        return QueueStats(depth, running, oldest_age, _totals(counts), of_models, priorities)

    async def workers(self) -> Sequence[WorkerStatus]:
        """The latest status of every worker."""
        workers = await self._worker_list.read()
        if self._unconfirmed:
            await self._end_unconfirmed()
        return workers

    async def _end_unconfirmed(self) -> None:
        """End jobs whose submission was not answered in time: nobody waits for them.

        Redis may have received them all the same, and accept them in the end.
        """
        for job_id in tuple(self._unconfirmed):
            await self.cancel(job_id)
            self._unconfirmed.discard(job_id)

    async def _unreadable(self, what: str, error: CodecError) -> CapacityError:
        """Log and count what cannot be read, the same once; returns what to say of it.

        Whoever asks again may get to a front end that can, while versions change.
        """
        reason = f"{what} cannot be read, it may be of another version: {error}"
        if reason not in self._logged and len(self._logged) < MAX_LOGGED:
            self._logged.add(reason)
            logger.warning(reason)
            with suppress(QueueDownError):
                await self._calls.run("count_unreadable")
        return CapacityError(f"{what} is of a version that this server cannot read", RETRY_AFTER)

    async def _get_result(
        self, job_id: str, after: int = 0, count: int = 0
    ) -> tuple[str, Any, Any]:
        """State of a job, its outcome or else the milliseconds left to it, and its events."""
        while True:
            await self._pubsub.wait_until_connected()
            try:
                answer = await self._results.run(
                    "get_result", job_id, self._front_id, after + 1, count
                )
            except QueueDownError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if answer[0] == b"unknown":
                raise _unknown(job_id)
            if answer[0] == b"gone":
                raise ResultGoneError("id", f"the images of job {job_id!r} are kept no longer")
            return answer[0].decode(), answer[1], answer[2]

    def _on_message(self, channel: str, message: bytes) -> None:
        if channel == self._front_channel:
            self._watchers.notify(message.decode(errors="replace"))
        elif channel == self._quarantine_channel:
            keys, name = self._namespace.keys, message.decode(errors="replace")
            aside = f"{keys}unreadable:{name}"
            logger.error("%s%s cannot be read, it is set aside as %s", keys, name, aside)
        else:
            self._worker_list.has_changed(message)

    async def _on_connected(self) -> None:
        await self._calls.run("stats")  # which a replica refuses
        self._watchers.notify_all()
        self._worker_list.has_changed()


class _WorkerList:
    """The list of workers, read again after `WORKERS_SECONDS`.

    Those of which a message tells are read at once, and they alone: a fleet that starts or changes
    its version sends thousands.
    """

    def __init__(
        self,
        calls: AsyncScriptRunner,
        unreadable: Callable[[str, CodecError], Awaitable[CapacityError]],
    ) -> None:
        self._calls, self._unreadable = calls, unreadable
        self._reading: asyncio.Future[None] | None = None
        self._known: dict[bytes, tuple[bytes, WorkerStatus | None]] = {}  # by name: as it came
        self._workers: Sequence[WorkerStatus] = ()
        self._changed: set[bytes] = set()
        self._all_due = 0.0  # when all are to be read

    def has_changed(self, worker: bytes | None = None) -> None:
        """Note that one may have changed, or any."""
        if worker is None or len(self._changed) == MAX_CHANGED:
            self._all_due = 0.0
        else:
            self._changed.add(worker)

    async def read(self) -> Sequence[WorkerStatus]:
        """Return the list; whoever asks while it is being read gets that answer, or that error."""
        if self._reading is None and (self._changed or time.monotonic() > self._all_due):
            self._reading = asyncio.ensure_future(self._read())
            self._reading.add_done_callback(self._end_reading)
        if self._reading is not None:
            await asyncio.shield(self._reading)
        return self._workers

    async def _read(self) -> None:
        names, self._changed = list(self._changed), set()
        if time.monotonic() > self._all_due:
            names, self._all_due = [], time.monotonic() + WORKERS_SECONDS
        try:
            answer = await self._calls.run("workers", *names)
        except BaseException:
            self.has_changed()
            raise
        statuses = (
            zip(names, answer, strict=True) if names else zip(*[iter(answer)] * 2, strict=True)
        )
        known = self._known if names else {}
        for name, data in statuses:
            before = self._known.get(name)
            if data is None:
                known.pop(name, None)
            elif before is not None and before[0] == data:
                known[name] = before
            else:
                known[name] = data, await self._decode(data)
        self._known = known
        self._workers = tuple(status for _, status in known.values() if status is not None)

    def _end_reading(self, reading: asyncio.Future[None]) -> None:
        self._reading = None
        if not reading.cancelled():
            reading.exception()  # or asyncio logs one that nobody waits for

    async def _decode(self, data: bytes) -> WorkerStatus | None:
        try:
            return decode_worker(data)
        except CodecError as error:
            await self._unreadable("an announcement of a worker", error)
            return None


def _unknown(job_id: str) -> UnknownJobError:
    return UnknownJobError("id", f"there is no job {job_id!r}")


def _totals(counts: dict[str, int]) -> Totals:
    return Totals(
        counts.get("accepted", 0),
        {state: n for state in END_STATES if (n := counts.get(f"ended:{state}", 0))},
        {why: n for why in REDELIVERIES if (n := counts.get(f"redelivered:{why}", 0))},
        counts.get("dead_lettered", 0),
        counts.get("fenced", 0),
        counts.get("unreadable", 0),
        counts.get("results_dropped", 0),
    )
