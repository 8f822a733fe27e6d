"""From a queue's URL to its adapter."""

from __future__ import annotations

from urllib.parse import urlsplit

from masc_core.errors import ConfigError
from worker.jobs.memory import MemoryQueue
from worker.jobs.queue import DEFAULT_PREFIX, JobQueue, QueueLimits
from worker.jobs.redis.queue import RedisQueue
from worker.jobs.redis.url import SCHEMES

VARIABLE = "MASC_QUEUE_URL"


def connect(url: str, limits: QueueLimits, prefix: str = DEFAULT_PREFIX) -> JobQueue:
    """Open the queue at ``url``.

    ``memory://`` is a queue inside this process. The URLs of Redis are in `worker.jobs.redis.url`,
    ``prefix`` is that of the keys in it; a server that cannot be reached may still come, any other
    fault is an error.

    Raises
    ------
    ConfigError : no adapter for such a URL, or what answers there is not what it should be; names
        the variable that both sides take it from, and leaves out what may be a password
    """
    try:
        scheme = urlsplit(url).scheme
        if scheme == "memory":
            return MemoryQueue(limits)
        if scheme in SCHEMES:
            return RedisQueue(url, limits, prefix)
    except ValueError:
        raise ConfigError(f"{VARIABLE}: the URL cannot be read") from None
    except ConfigError as error:
        raise ConfigError(f"{VARIABLE}: {error}") from None
    raise ConfigError(
        f"{VARIABLE}: no queue for a URL of the kind {scheme!r}, use memory:// or redis://"
    )
