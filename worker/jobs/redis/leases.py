"""What a worker learns without asking: which of its leases are lost, and that jobs have arrived.

Its own channel names lost leases, a shared one the models whose queue is no longer empty. Messages
are missed while it is not subscribed, so after every subscription it checks its leases once, and
`wait_for_arrival` returns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from worker.jobs.redis.caller import Caller
from worker.jobs.redis.connection import BlockingRedis
from worker.jobs.redis.held_leases import HeldLeases
from worker.jobs.redis.pubsub import PubSubThread


class LeaseUpdates:
    """Follows the channels of a worker.

    Parameters
    ----------
    client, scripts : of the same Redis
    channels : what the names of all channels begin with
    name : of the worker, as it claims

    Attributes
    ----------
    held : the leases of this worker
    num_arrivals : how often there have been jobs where there were none; never goes back
    """

    def __init__(self, client: BlockingRedis, scripts: Caller, channels: str, name: str) -> None:
        self.held = HeldLeases()
        self.num_arrivals = 0
        self._scripts = scripts
        self._arrival = threading.Condition()
        self._listeners: list[Callable[[str], None]] = []
        self._own_channel = f"{channels}worker:{name}"
        self._pubsub = PubSubThread(
            client, (self._own_channel, f"{channels}arrivals"), self._on_message, self._on_connected
        )

    def start(self) -> None:
        """Subscribe; ignored when that has been done."""
        self._pubsub.start()

    def close(self) -> None:
        """Unsubscribe."""
        self._pubsub.close()

    def on_arrival(self, arrived: Callable[[str], None]) -> None:
        """Have it called with the model whose queue is no longer empty; empty if any may be."""
        self._listeners.append(arrived)

    def wait_for_arrival(self, before: int, timeout: float) -> None:
        """Return when ``num_arrivals`` is no longer ``before``, at the latest after ``timeout``."""
        with self._arrival:
            self._arrival.wait_for(lambda: self.num_arrivals != before, timeout)

    def _on_message(self, channel: str, message: bytes) -> None:
        if channel != self._own_channel:
            self._arrived(message.decode())
        elif message:
            token, job_id = message.split(b" ", 1)
            self.held.drop(job_id.decode(), int(token))

    def _on_connected(self) -> None:
        held = self.held.tokens
        if held:
            pairs = [part for pair in held.items() for part in pair]
            for job_id, token in self._scripts.run("check_leases", *pairs):
                self.held.drop(job_id.decode(), token)
        self._arrived("")

    def _arrived(self, model: str) -> None:
        with self._arrival:
            self.num_arrivals += 1
            self._arrival.notify_all()
        for arrived in self._listeners:
            arrived(model)
