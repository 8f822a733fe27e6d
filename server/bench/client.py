"""The HTTP client of the load generator: its session, its API key, and names for its failures.

Connections are not limited: a limit would delay requests that are due.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import aiohttp
from pydantic import SecretStr

from masc_core.errors import ConfigError
from masc_core.settings import ProcessSettings, read_settings

FAILURES = (aiohttp.ClientError, OSError)  # time-outs are among the latter

NAMES: Mapping[type[Exception], str] = {
    TimeoutError: "timed out",
    aiohttp.InvalidURL: "no such address",
    aiohttp.ClientSSLError: "no secure connection",
    aiohttp.ClientConnectorDNSError: "unknown host",
    aiohttp.ServerDisconnectedError: "the connection was closed",
    aiohttp.ClientPayloadError: "the answer broke off",
}

# Seconds; servers close idle connections after 5 or more, and a request must not meet that.
KEEP_ALIVE = 2.0


def open_session(timeout: float, api_key: SecretStr | None = None) -> aiohttp.ClientSession:
    """Return a session whose requests are given up after ``timeout`` seconds."""
    headers = {"User-Agent": "masc-bench"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key.get_secret_value()}"
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE, ttl_dns_cache=None),
        timeout=aiohttp.ClientTimeout(total=timeout),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
    )


def describe_failure(error: Exception) -> str:
    """Say in a few words why there is no answer; one of few texts, whatever the address."""
    named = next((text for kind, text in NAMES.items() if isinstance(error, kind)), None)
    if named is not None:
        return named
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number).lower() if number else type(error).__name__


class BenchSettings(ProcessSettings):
    """What the environment tells the load generator: the key that the service asks for."""

    api_key: SecretStr | None = None


def load_api_key(given: str | None) -> SecretStr | None:
    """Return the given key, or that of ``MASC_API_KEY``.

    Raises
    ------
    ConfigError : no header can carry it; does not say what it is
    """
    key = read_settings(BenchSettings, {"api_key": given}).api_key
    if key is not None and not _fits_header(key.get_secret_value()):
        raise ConfigError("MASC_API_KEY: must be printable ASCII without spaces")
    return key


def _fits_header(key: str) -> bool:
    return bool(key) and key.isascii() and key.isprintable() and " " not in key
