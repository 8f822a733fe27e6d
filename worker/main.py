"""The process of a worker: the loop, its metrics, and the signals that end it.

The loop has a thread of its own, so that a signal is received while a step runs. SIGTERM or an
interrupt lets it end what it has begun and give back the rest; a second one ends the process at
once, and the jobs go to others when their leases run out.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from prometheus_client import CollectorRegistry, Gauge, start_http_server

from masc_core.errors import ConfigError, EngineError
from worker.loop import WorkerLoop

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
POLL_SECONDS = 1.0  # between two looks whether the loop should have ended


class LoopThread(threading.Thread):
    """Runs a worker's loop; ``failure`` is what ended it, if not `WorkerLoop.stop`.

    A daemon, because a step that hangs must not keep the process: who ends it waits for the loop,
    for as long as that may take.
    """

    def __init__(self, loop: WorkerLoop) -> None:
        super().__init__(name="worker", daemon=True)
        self._loop = loop
        self.failure: Exception | None = None

    def run(self) -> None:
        """Run the loop to its end."""
        try:
            self._loop.run()
        except Exception as error:
            logger.exception("the worker has stopped")
            self.failure = error


def run_until_signal(loop: WorkerLoop) -> None:
    """Run the loop until a signal, in the main thread.

    Raises
    ------
    EngineError : a step hangs, so that the loop has not ended in time
    Exception : what ended the loop
    """
    thread, received = LoopThread(loop), list[int]()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        received.append(number)  # before anything that the next signal must not find half done
        if len(received) > 1:
            os._exit(128 + number)
        loop.stop()

    for number in SIGNALS:
        signal.signal(number, on_signal)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        if loop.is_overdue:
            raise EngineError("a step hangs: the worker ends without it")
    if thread.failure is not None:
        raise thread.failure


@contextmanager
def exposed(loop: WorkerLoop, registry: CollectorRegistry, host: str, port: int) -> Iterator[int]:
    """Serve the metrics of a process that has no front end, and give the port; 0 takes a free one.

    Raises
    ------
    ConfigError : the address cannot be had
    """
    ready = Gauge("masc_ready", "Whether this worker is ready.", registry=registry)
    ready.set_function(lambda: float(loop.status.ready))
    draining = Gauge("masc_draining", "Whether this worker takes no more jobs.", registry=registry)
    draining.set_function(lambda: float(loop.is_stopping))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigError(f"MASC_METRICS_PORT: {host}:{port} cannot be had: {error}") from error
    try:
        logger.info("metrics on http://%s:%d/metrics", host, server.server_port)
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
