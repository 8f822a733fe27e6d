"""From a queue's URL to its adapter."""

from __future__ import annotations

from urllib.parse import urlsplit

from masc_core.errors import ConfigError
from worker.jobs.memory import MemoryQueue
from worker.jobs.queue import JobQueue

VARIABLE = "MASC_QUEUE_URL"


def connect(url: str, max_jobs: int) -> JobQueue:
    """Open the queue at ``url``; at most ``max_jobs`` may wait in it.

    ``memory://`` is a queue inside this process.

    Raises
    ------
    ConfigError : no adapter for such a URL; names the variable that both sides take it from, and
        leaves out what may be a password
    """
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        raise ConfigError(f"{VARIABLE}: the URL cannot be read") from error
    if scheme == "memory":
        return MemoryQueue(max_jobs)
    raise ConfigError(f"{VARIABLE}: no queue for a URL of the kind {scheme!r}, use memory://")
