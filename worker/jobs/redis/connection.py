"""Connections to Redis: how they are made, what is asked of the server, and what a failure means.

Nothing is tried again in here: a call either is answered in time or raises `QueueDownError`. No
message holds the URL, which may hold a password.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004 - theirs, from which the others descend
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004 - theirs
)
from redis.retry import Retry

from masc_core.errors import ConfigError, QueueDownError, QueueFullError

logger = logging.getLogger(__name__)

AsyncRedis: TypeAlias = redis.asyncio.Redis
BlockingRedis: TypeAlias = redis.Redis

MIN_VERSION = (7, 0)
CONNECT_SECONDS = 0.5
ANSWER_SECONDS = 3.0  # also for a result of many megabytes
SILENCE_SECONDS = 1.0  # on a subscription, after which the server is asked whether it is there
RETRY_SECONDS = 0.25  # between two tries to reach it
RETRY_AFTER = 2.0
# Redis' own reasons not to serve anybody at the moment: errors, or the first word of one.
PASSING: Final = (ConnectionError, TimeoutError, MasterDownError, ReadOnlyError)
PASSING_WORDS: Final = ("BUSY", "CLUSTERDOWN", "MISCONF", "NOREPLICAS", "TRYAGAIN")
CERTIFICATES: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password")
OPTIONS: Final = ("db", "username", "password")  # of a URL; the others below only with TLS
TLS_OPTIONS: Final = (*CERTIFICATES, "ssl_cert_reqs", "ssl_check_hostname")
MAX_SOCKET_PATH = 107  # bytes, in Linux
CERT_REQS: Final = ("none", "optional", "required")


def _options() -> dict[str, Any]:
    return {
        "protocol": 2,
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": ANSWER_SECONDS,
        "retry": Retry(NoBackoff(), 0),
        "client_name": "masc",
    }


def check_url(url: str) -> None:
    """Refuse what the client library would misread, or find at the first connection only.

    Raises
    ------
    ValueError : such a URL; no message holds a part of it that may be of a password
    ConfigError : the same, with what is known to be wrong
    """
    parts = urlsplit(url)
    if "#" in url or "@" in parts.path + parts.query:
        raise ConfigError("the URL cannot be read: in a password, write / # ? @ as %2F %23 %3F %40")
    if re.search(r"[\0-\x20\x7f]", url) or "\0" in unquote(url):  # which urlsplit leaves out
        raise ConfigError("the URL has a space or a control character")
    options = _options_in(parts)
    if parts.scheme == "unix":
        if parts.hostname or not parts.path:
            raise ConfigError("the URL needs an absolute path, as in unix:///run/redis.sock?db=0")
        if len(os.fsencode(unquote(parts.path))) > MAX_SOCKET_PATH:
            raise ConfigError(f"the URL's path has more than {MAX_SOCKET_PATH} bytes")
    elif not re.fullmatch(r"(/\d*)?", parts.path):
        raise ConfigError("the URL's path is no number of a database")
    # What cannot be read raises ValueError.
    _ = int(options.get("db", 0)), (parts.hostname or "").encode("idna"), parts.port
    if options.keys() & set(CERTIFICATES):
        _check_certificates(**{name: options.get(name) for name in CERTIFICATES})


def _options_in(parts: SplitResult) -> dict[str, str]:
    """Options behind the question mark; whatever else the URL gives, it gives once."""
    allowed = OPTIONS + (TLS_OPTIONS if parts.scheme == "rediss" else ())
    given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    options = dict(given)
    if not options.keys() <= set(allowed):
        raise ConfigError(f"the URL has other options than {', '.join(allowed)}")
    if "" in options.values():
        raise ConfigError("the URL has an option without a value")
    before = {"username": parts.username, "password": parts.password}
    before["db"] = "" if parts.scheme == "unix" else parts.path.strip("/")
    names = [name for name, _ in given] + [name for name, value in before.items() if value]
    if len(names) > len(set(names)):
        raise ConfigError(f"the URL says twice: {max(names, key=names.count)}")
    if options.get("ssl_cert_reqs", CERT_REQS[0]) not in CERT_REQS:
        raise ConfigError(f"the URL's ssl_cert_reqs is none of {', '.join(CERT_REQS)}")
    return options


def _check_certificates(
    ssl_ca_certs: str | None,
    ssl_ca_path: str | None,
    ssl_certfile: str | None,
    ssl_keyfile: str | None,
    ssl_password: str | None,
) -> None:
    if (ssl_keyfile or ssl_password) and not ssl_certfile:
        raise ConfigError("the URL has an ssl_keyfile or ssl_password without an ssl_certfile")
    if ssl_ca_path and not Path(ssl_ca_path).is_dir():
        raise ConfigError("the URL's ssl_ca_path is no folder")
    context = ssl.create_default_context()
    try:
        if ssl_ca_certs or ssl_ca_path:
            context.load_verify_locations(ssl_ca_certs, ssl_ca_path)
        if ssl_certfile:
            context.load_cert_chain(ssl_certfile, ssl_keyfile, ssl_password or "")
    except OSError as error:
        raise ConfigError(f"the certificates of the URL: {error.strerror}") from error


def connect_async(url: str) -> AsyncRedis:
    """Make a client for coroutines; it connects when it is used."""
    return redis.asyncio.Redis.from_url(url, **_options())


def connect_blocking(url: str) -> BlockingRedis:
    """Make a client for threads; it connects when it is used."""
    return redis.Redis.from_url(url, **_options())


def database_of(client: AsyncRedis | BlockingRedis) -> int:
    """Return the number of the database that the URL names."""
    return int(client.connection_pool.connection_kwargs.get("db") or 0)


@contextmanager
def reachable_queue(script: str) -> Iterator[None]:
    """Turn whatever goes wrong with Redis into `QueueDownError`, or `QueueFullError`.

    What does not pass by itself is logged when it begins: the same may meet every call of a script.
    """
    try:
        yield
    except OutOfMemoryError as error:
        raise QueueFullError("the queue has no memory left for more jobs", RETRY_AFTER) from error
    except RedisError as error:
        if not is_passing(error):
            _note_refusal(script, str(error))
        raise QueueDownError("the queue cannot be reached", RETRY_AFTER) from error
    else:
        _refused.discard(script)


_refused: Final[set[str]] = set()  # scripts


def _note_refusal(script: str, reason: str) -> None:
    if script not in _refused:
        _refused.add(script)
        logger.error("the queue's Redis refuses %s: %s", script, reason)


def is_passing(error: RedisError) -> bool:
    """Whether Redis may serve us in a while, without anybody changing us."""
    return isinstance(error, PASSING) or str(error).startswith(PASSING_WORDS)


def check_server(client: BlockingRedis) -> None:
    """Look at the server once, before anything depends on it; one that is away may still come.

    Raises
    ------
    ConfigError : it is no Redis, too old, or does not let us in
    NoPermissionError : its user may not ask
    """
    try:
        info = client.info()
    except (AuthenticationError, AuthorizationError) as error:
        raise ConfigError("Redis refuses the user or the password") from error
    except NoPermissionError:
        raise
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
