"""Connections to Redis: how they are made, what is asked of the server, and what a failure means.

Nothing is tried again in here: a call either is answered in time or raises `QueueDownError`. No
message holds the URL, which may hold a password.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004 - theirs, from which the others descend
    InvalidResponse,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004 - theirs
)
from redis.retry import Retry

from masc_core.errors import ConfigError, QueueDownError, QueueFullError
from worker.jobs.redis.url import RedisUrl

logger = logging.getLogger(__name__)

Address: TypeAlias = tuple[str, int]
AsyncRedis: TypeAlias = redis.asyncio.Redis
BlockingRedis: TypeAlias = redis.Redis

MIN_VERSION = (7, 0)
CONNECT_SECONDS = 0.5
ANSWER_SECONDS = 3.0  # also for a result of many megabytes
SILENCE_SECONDS = 1.0  # on a subscription, after which the server is asked whether it is there
RETRY_SECONDS = 0.25  # between two tries to reach it
RETRY_AFTER = 2.0
REDIS_PORT = 6379
CLUSTER_NODE_MESSAGE: Final = (
    "this is a node of a cluster, for which the URL begins with redis+cluster://"
)
# Redis' own reasons not to serve anybody at the moment: errors, or the first word of one.
TRANSIENT_ERRORS: Final = (ConnectionError, TimeoutError, MasterDownError, ReadOnlyError, AskError)
FAILOVER_ERRORS: Final = (ReadOnlyError, MovedError)  # the queue has gone to another server
TRANSIENT_PREFIXES: Final = ("BUSY", "CLUSTERDOWN", "MISCONF", "NOREPLICAS", "TRYAGAIN")


def _options() -> dict[str, Any]:
    return {
        "protocol": 2,
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": ANSWER_SECONDS,
        "retry": Retry(NoBackoff(), 0),
        "client_name": "masc",
    }


def connect_async(url: str, key: str = "") -> AsyncRedis:
    """Make a client for coroutines; it connects when it is used.

    In a cluster it connects to the node that has ``key``, and all others with the same hash tag.
    """
    target = RedisUrl.read(url)
    if not target.seeds:
        return redis.asyncio.Redis.from_url(url, **_options())
    pool = redis.asyncio.sentinel.SentinelConnectionPool(  # type: ignore[no-untyped-call]
        target.master, AsyncMasterResolver(target, key), **_pool_options(target)
    )
    return redis.asyncio.Redis.from_pool(pool)


def connect_blocking(url: str, key: str = "") -> BlockingRedis:
    """Make a client for threads, as `connect_async` does."""
    target = RedisUrl.read(url)
    if not target.seeds:
        return redis.Redis.from_url(url, **_options())
    pool = redis.sentinel.SentinelConnectionPool(  # type: ignore[no-untyped-call]
        target.master, MasterResolver(target, key), **_pool_options(target)
    )
    return redis.Redis.from_pool(pool)


def _pool_options(target: RedisUrl) -> dict[str, Any]:
    given = redis.connection.parse_url(target.server)  # type: ignore[no-untyped-call]
    is_tls = given.pop("connection_class", None) is not None
    return {name: value for name, value in given.items() if name not in {"host", "port"}} | {
        "ssl": is_tls,
        **_options(),
    }


def _seed_options() -> dict[str, Any]:
    return _options() | {"socket_timeout": CONNECT_SECONDS}  # the next one may answer


class MasterResolver:
    """Asks where the queue's server is, whenever a connection is made: elsewhere after a failover.

    To connection pools it is a `redis.sentinel.Sentinel`. In a cluster, where the server is that of
    ``key``, any other node refuses a command on it and names that one.
    """

    def __init__(self, target: RedisUrl, key: str) -> None:
        self._target, self._seeds = target, target.seeds
        by_name = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", target.master)
        self._question = by_name if target.master else ("EXISTS", key)

    def discover_master(self, _: str) -> Address:
        """Host and port; raises `MasterNotFoundError`."""
        answers: list[Any] = []
        for seed in self._seeds:
            with redis.Redis.from_url(seed, **_seed_options()) as client:
                try:
                    answers.append(client.execute_command(*self._question))
                except (RedisError, OSError) as error:
                    answers.append(error)
            if address := self._address(seed, answers[-1]):
                return address
        raise redis.sentinel.MasterNotFoundError(self._why_not(answers))

    def _address(self, seed: str, answer: Any) -> Address | None:  # noqa: ANN401 - as Redis answers
        """What an answer says; who gave it is asked first next time."""
        own = urlsplit(seed)
        match answer:
            case MovedError():  # without a host it is that of who answered
                address = answer.host or own.hostname or "", answer.port
            case [host, port]:
                address = host.decode(), int(port)
            case int():
                address = own.hostname or "", own.port or REDIS_PORT
            case _:
                return None
        self._seeds = (seed, *(other for other in self._seeds if other != seed))
        return address

    def _why_not(self, answers: Sequence[object]) -> str:
        who = f"the master {self._target.master!r}" if self._target.master else "the queue's node"
        reasons = dict.fromkeys(str(answer) for answer in answers if answer is not None)
        return f"none of {len(answers)} servers knows {who}; {', '.join(reasons)}".rstrip("; ")


class AsyncMasterResolver(MasterResolver):
    """The same for coroutines."""

    async def discover_master(self, _: str) -> Address:  # type: ignore[override] # a coroutine
        """Host and port; raises `MasterNotFoundError`."""
        answers: list[Any] = []
        for seed in self._seeds:
            async with redis.asyncio.Redis.from_url(seed, **_seed_options()) as client:
                try:
                    answer = await client.execute_command(*self._question)  # type: ignore[no-untyped-call]
                    answers.append(answer)
                except (RedisError, OSError) as error:
                    answers.append(error)
            if address := self._address(seed, answers[-1]):
                return address
        raise redis.asyncio.sentinel.MasterNotFoundError(self._why_not(answers))


def database_of(client: AsyncRedis | BlockingRedis) -> int:
    """Return the number of the database that the URL names."""
    return int(client.connection_pool.connection_kwargs.get("db") or 0)


@contextmanager
def reachable_queue(script: str) -> Iterator[None]:
    """Turn whatever goes wrong with Redis into `QueueDownError`, or `QueueFullError`.

    A lasting error is logged once when it begins, since every call of a script may raise it.
    """
    try:
        yield
    except OutOfMemoryError as error:
        raise QueueFullError("the queue has no memory left for more jobs", RETRY_AFTER) from error
    except RedisError as error:
        if not is_transient(error):
            _note_refusal(script, str(error))
        raise QueueDownError("the queue cannot be reached", RETRY_AFTER) from error
    else:
        _refused.discard(script)


_refused: Final[set[str]] = set()  # scripts


def _note_refusal(script: str, reason: str) -> None:
    if script not in _refused:
        _refused.add(script)
        logger.error("the queue's Redis refuses %s: %s", script, reason)


def is_transient(error: RedisError) -> bool:
    """Whether Redis may serve us in a while, without anybody changing us."""
    return isinstance(error, TRANSIENT_ERRORS) or str(error).startswith(TRANSIENT_PREFIXES)


def check_server(client: BlockingRedis) -> None:
    """Look at the server once, before anything depends on it; an unreachable one may still come.

    Raises
    ------
    ConfigError : it is no Redis, too old, a node of a cluster, or does not let us in
    """
    try:
        info = client.info()
    except (AuthenticationError, AuthorizationError) as error:
        raise ConfigError("Redis refuses the user or the password") from error
    except NoPermissionError:  # as of managed servers
        logger.info("the queue's Redis tells nothing of itself: see that it evicts nothing")
    except BusyLoadingError:
        logger.warning("the queue's Redis is still loading its data")
    except InvalidResponse as error:
        raise ConfigError("what answers there is no Redis") from error
    except (ConnectionError, TimeoutError) as error:
        logger.warning("the queue cannot be reached yet: %s", error)
    except ResponseError as error:
        raise ConfigError(f"Redis answers {error}") from error
    else:
        _check_version(str(info["redis_version"]))
        is_found = isinstance(client.connection_pool, redis.sentinel.SentinelConnectionPool)
        if info.get("cluster_enabled") and not is_found:
            raise ConfigError(CLUSTER_NODE_MESSAGE)
        _warn_of_losses(info)


def _check_version(version: str) -> None:
    major, minor, *_ = (int(part) for part in version.split(".") if part.isdigit())
    if (major, minor) < MIN_VERSION:
        needed = ".".join(map(str, MIN_VERSION))
        raise ConfigError(f"Redis {needed} or newer is needed, this one is {version}")


def _warn_of_losses(info: Mapping[str, Any]) -> None:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        logger.warning(
            "the queue's Redis may evict jobs: its maxmemory-policy is %s, set noeviction", policy
        )
    if not info.get("aof_enabled", 1):
        logger.warning("the queue's Redis keeps no append-only file: a restart loses all jobs")
