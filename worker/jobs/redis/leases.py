"""The leases that a worker holds, and what it learns of them without asking.

The worker's own channel reports lost leases, and arrivals of jobs that this worker is woken for
before all others. Messages are missed while unsubscribed, so each subscription rechecks the leases
and wakes `wait_for_arrival`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from worker.jobs.job import Lease
from worker.jobs.redis.client import ScriptRunner
from worker.jobs.redis.connection import BlockingRedis
from worker.jobs.redis.pubsub import PubSubThread

LOST = re.compile(rb"(\d{1,20}) ([!-~]+)")  # token and job
ARRIVAL = b"arrival "  # and the model


class HeldLeases:
    """Jobs and the tokens of their leases, as far as is known; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: dict[str, int] = {}
        self._num_claims = 0
        self._lost_early: set[tuple[str, int]] = set()

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of the held leases, by job id."""
        with self._lock:
            return dict(self._tokens)

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Remember losses meanwhile: their message can overtake the reply of the claim."""
        with self._lock:
            self._num_claims += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_claims -= 1
                if not self._num_claims:
                    self._lost_early.clear()

    def add(self, leases: Iterable[Lease]) -> None:
        """Add claimed leases; within `claiming`."""
        with self._lock:
            for lease in leases:
                if (lease.job_id, lease.token) not in self._lost_early:
                    self._tokens[lease.job_id] = lease.token

    def drop(self, job_id: str, token: int) -> None:
        """Forget a lease that is over."""
        with self._lock:
            if self._tokens.get(job_id) == token:
                del self._tokens[job_id]
            elif self._num_claims:
                self._lost_early.add((job_id, token))

    def lost(self, leases: Iterable[Lease]) -> set[str]:
        """Return the jobs among these whose lease is not held."""
        with self._lock:
            return {
                lease.job_id for lease in leases if self._tokens.get(lease.job_id) != lease.token
            }


class LeaseUpdates:
    """Follows the channels of a worker.

    Parameters
    ----------
    client, scripts : of the same Redis
    channel : of the worker

    Attributes
    ----------
    held : the leases of this worker
    num_arrivals : how often this worker was woken for jobs; never goes back
    """

    def __init__(self, client: BlockingRedis, scripts: ScriptRunner, channel: str) -> None:
        self.held = HeldLeases()
        self.num_arrivals = 0
        self._scripts = scripts
        self._arrival = threading.Condition()
        self._listeners: list[Callable[[str], None]] = []
        pubsub = PubSubThread(client, channel, self._on_message, self._on_connected)
        self.start, self.close = pubsub.start, pubsub.close
        scripts.on_failover = pubsub.reconnect

    def on_arrival(self, arrived: Callable[[str], None]) -> None:
        """Register a callback; see `worker.jobs.queue.JobConsumer.on_arrival`."""
        self._listeners.append(arrived)

    def wait_for_arrival(self, before: int, timeout: float) -> None:
        """Return when ``num_arrivals`` is no longer ``before``, at the latest after ``timeout``."""
        with self._arrival:
            self._arrival.wait_for(lambda: self.num_arrivals != before, timeout)

    def _on_message(self, message: bytes) -> None:
        if message.startswith(ARRIVAL):
            self._arrived(message.removeprefix(ARRIVAL).decode(errors="replace"))
        elif lost := LOST.fullmatch(message):  # an empty one only wakes the thread, to end
            self.held.drop(lost[2].decode(), int(lost[1]))

    def _on_connected(self) -> None:
        pairs = [part for pair in self.held.tokens.items() for part in pair]
        if pairs or self.num_arrivals:  # not the first time; a replica refuses it
            for job_id, token in self._scripts.run("check_leases", *pairs):
                self.held.drop(job_id.decode(), token)
        self._arrived("")

    def _arrived(self, model: str) -> None:
        with self._arrival:
            self.num_arrivals += 1
            self._arrival.notify_all()
        for arrived in self._listeners:
            arrived(model)
