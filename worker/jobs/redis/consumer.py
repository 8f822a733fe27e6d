"""The worker's side of the queue in Redis.

Every call is one script. What others do to this worker's jobs comes over its own channel; what that
misses shows when the leases are renewed. See `worker.jobs.queue` for what the methods do.
"""

from __future__ import annotations

import logging
import os
import platform
import random
import time
import uuid
from collections.abc import Callable, Iterable, Sequence

from worker.jobs.job import Event, Lease
from worker.jobs.outcome import JobFailure, JobResult, Outcome, end_state, releases_idempotency_key
from worker.jobs.queue import (
    POLL_SECONDS,
    JobConsumer,
    JobReport,
    QueueLimits,
    Requeue,
    WorkerStatus,
)
from worker.jobs.redis.client import QueueNamespace, ScriptRunner
from worker.jobs.redis.codec import (
    CodecError,
    UnknownValueError,
    decode_job,
    encode_with_kind,
    encode_worker,
)
from worker.jobs.redis.connection import BlockingRedis
from worker.jobs.redis.leases import LeaseUpdates

logger = logging.getLogger(__name__)

MAX_RETAINED_EVENTS = 1000  # of a job that are kept
MAX_POLLS_PER_SECOND = 100  # of all idle workers together
CLAIM_POLL_SECONDS = 0.5  # while a claim waits: leases of others may run out meanwhile


class RedisConsumer(JobConsumer):
    """See `JobConsumer`."""

    is_remote = True

    def __init__(
        self, client: BlockingRedis, limits: QueueLimits, namespace: QueueNamespace
    ) -> None:
        self._client, self.lease_seconds = client, limits.lease_seconds
        self._scripts = ScriptRunner(client, namespace)
        self._name = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        channel = f"{namespace.channels}worker:{self._name}"
        self._updates = LeaseUpdates(client, self._scripts, channel)
        self._passed_over: dict[str, float] = {}  # jobs of a newer version, until their deadline
        self._num_workers = 1
        self._models: frozenset[str] = frozenset()  # that were claimed
        self._last_try = ("", 0)  # the latest job that was on its last try, and its token

    def close(self) -> None:
        """Disconnect; what is claimed stays so until its leases run out."""
        self._updates.close()
        self._client.close()

    @property
    def poll_seconds(self) -> float:
        """Longer in a large fleet."""
        return poll_seconds(self._num_workers)

    def on_arrival(self, arrived: Callable[[str], None]) -> None:
        """Register a callback for jobs of models that were claimed, as far as messages arrive."""
        self._updates.on_arrival(arrived)

    def claim(self, model: str, max_rows: int, timeout: float) -> Sequence[Lease]:
        """Take the next jobs, in fair order, that fit."""
        if max_rows <= 0:
            return ()
        until = time.monotonic() + timeout
        while True:
            before = self._updates.num_arrivals
            leases = self._claim_now(model, max_rows)
            left = until - time.monotonic()
            if leases or left <= 0:
                return leases
            self._updates.wait_for_arrival(before, min(left, CLAIM_POLL_SECONDS))

    def renew(self, leases: Iterable[Lease]) -> None:
        """Hold leases for longer; those lost stay lost."""
        pairs = [part for lease in leases for part in (lease.job_id, lease.token)]
        if pairs:
            for job_id, token in self._scripts.run("renew", *pairs):
                self._updates.held.drop(job_id.decode(), token)

    def lost_leases(self, leases: Iterable[Lease]) -> set[str]:
        """Ids of the jobs among these that are over, or somebody else's."""
        return self._updates.held.lost(leases)

    def report(self, reports: Sequence[JobReport]) -> Sequence[bool]:
        """Tell what has happened to jobs, in one script."""
        if not reports:
            return ()
        arguments = [
            part
            for lease, report in reports
            for part in (lease.job_id, lease.token, *_fields(report))
        ]
        answers = self._scripts.run("report", MAX_RETAINED_EVENTS, *arguments)
        for lease, report in reports:
            if not isinstance(report, Event):
                self._updates.held.drop(lease.job_id, lease.token)
        return [bool(answer) for answer in answers]

    def announce(self, status: WorkerStatus) -> None:
        """Tell the front ends how this worker is; while it is not ready, no job wakes it."""
        models = self._models & {status.model} if status.model else self._models
        asleep = () if status.ready else models
        arguments = (status.worker_id, encode_worker(status), self._name, *asleep)
        self._num_workers = self._scripts.run("announce", *arguments)

    def remove_worker(self, worker_id: str) -> None:
        """Take the worker off the list."""
        self._scripts.run("remove_worker", worker_id)

    def _claim_now(self, model: str, max_rows: int) -> list[Lease]:
        self._updates.start()
        self._models |= {model}
        while True:
            now = time.monotonic()
            self._passed_over = {id_: end for id_, end in self._passed_over.items() if end > now}
            with self._updates.held.claiming():
                claimed = self._scripts.run(
                    "claim", model, max_rows, self._name, *self._last_try, *self._passed_over
                )
                leases = [lease for fields in claimed if (lease := self._read(*fields)) is not None]
                self._updates.held.add(leases)
            if leases or not claimed:
                return leases

    def _read(
        self, job_id: bytes, token: int, milliseconds_left: int, data: bytes, is_last_try: int
    ) -> Lease | None:
        """Read a job; one that is damaged is quarantined, one of a newer version left to others."""
        try:
            lease = Lease(decode_job(data), token, milliseconds_left / 1000)
        except UnknownValueError as error:
            name, seconds = job_id.decode(), milliseconds_left / 1000
            logger.warning("job %s is left to workers of another version: %s", name, error)
            self._passed_over[name] = time.monotonic() + seconds
            self._scripts.run("report", MAX_RETAINED_EVENTS, name, token, "unread", b"", 0)
            return None
        except CodecError:
            self._scripts.run("quarantine", job_id)
            return None
        if is_last_try:
            self._last_try = (lease.job_id, token)
        return lease


def poll_seconds(num_workers: int) -> float:
    """Seconds until an idle worker claims without being woken, in a fleet of so many.

    Whichever asks first finds the job whose message was lost.
    """
    jitter = random.uniform(0.8, 1.2)  # noqa: S311 - those who start together ask apart
    return max(POLL_SECONDS, num_workers / MAX_POLLS_PER_SECOND) * jitter


def _fields(report: Event | Outcome | Requeue) -> tuple[str, bytes, int]:
    """A report as `report.lua` takes it: its kind, its data, whether it frees the job's key."""
    match report:
        case Requeue():
            return "back", b"", 0
        case JobResult() | JobFailure():
            return (
                end_state(report),
                encode_with_kind(report),
                int(releases_idempotency_key(report)),
            )
        case event:
            return "event", encode_with_kind(event), 0
