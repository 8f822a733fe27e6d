"""Rate limits: requests that a client may start in each window of a minute.

A window opens with the client's first request; all front ends of a Redis queue count together.
Across the border of two windows twice the number can come within a minute; the queue's own limit
protects the service. While Redis is down nothing is counted and everyone passes: admission needs
the same Redis, and refuses by itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from limits.errors import StorageError
from redis.asyncio import ConnectionPool

from masc_core.errors import RateLimitError
from server.auth.api_keys import Client
from worker.jobs.redis.client import loop_timeout

logger = logging.getLogger(__name__)

KEY_PREFIX = "masc:limits"
CONNECTIONS = 8
TIMEOUT_SECONDS = 0.2  # for Redis to answer; with the queue's own they are less than one
AWAY_SECONDS = 1.0  # until Redis is asked again after a failure
ROUNDING = 0.5  # Redis tells the rest of a window in whole seconds, the nearest


class RateLimits:
    """The counts of all clients.

    Parameters
    ----------
    queue_url : the queue's; Redis counts for all front ends, anything else for this process alone
    clock : monotonic seconds
    timeout : seconds for Redis to answer; may be changed
    """

    def __init__(
        self,
        queue_url: str,
        clock: Callable[[], float] = time.monotonic,
        timeout: float = TIMEOUT_SECONDS,
    ) -> None:
        self.timeout = timeout
        self._pool = _pool(queue_url)
        self._limiter = FixedWindowRateLimiter(_storage(queue_url, self._pool))
        self._connections = asyncio.Semaphore(CONNECTIONS)
        self._clock = clock
        self._away_until: float | None = None

    async def count(self, client: Client) -> None:
        """Count a request that starts work; `RateLimitError` if it is one too many."""
        if not client.requests_per_minute:
            return
        async with self._connections:  # or a queue for connections would look like a slow Redis
            wait = None if self._is_away() else await self._seconds_to_wait(client)
        if wait is not None:
            limit = client.requests_per_minute
            raise RateLimitError(f"{client.name} may start {limit} requests a minute", wait)

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self._pool is not None:
            await self._pool.aclose()

    async def _seconds_to_wait(self, client: Client) -> float | None:
        """Seconds until the next window, if this one is used up; None while Redis is away too."""
        try:
            async with loop_timeout(self.timeout):
                wait = await self._count_in_window(client)
        except (StorageError, TimeoutError) as error:
            self._mark_away(error)
            return None
        if self._away_until is not None:
            self._away_until = None
            logger.info("rate limits are kept again")
        return wait

    async def _count_in_window(self, client: Client) -> float | None:
        item = RateLimitItemPerMinute(client.requests_per_minute)
        if await self._limiter.hit(item, client.name):
            return None
        window = await self._limiter.get_window_stats(item, client.name)
        return max(0.0, window.reset_time - time.time()) + ROUNDING

    def _is_away(self) -> bool:
        return self._away_until is not None and self._clock() < self._away_until

    def _mark_away(self, error: Exception) -> None:
        if self._away_until is None:
            reason = str(error) or "no answer in time"
            logger.warning("rate limits are not kept, Redis is away: %s", reason)
        self._away_until = self._clock() + AWAY_SECONDS


def _pool(queue_url: str) -> ConnectionPool | None:
    if urlsplit(queue_url).scheme == "memory":
        return None
    return ConnectionPool.from_url(queue_url)


def _storage(queue_url: str, pool: ConnectionPool | None) -> MemoryStorage | RedisStorage:
    if pool is None:
        return MemoryStorage()
    return RedisStorage(
        f"async+{queue_url}",
        wrap_exceptions=True,
        implementation="redispy",
        key_prefix=KEY_PREFIX,
        connection_pool=pool,  # type: ignore[arg-type]  # documented, but not in the types
    )
