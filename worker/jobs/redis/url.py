"""URLs of Redis: of a server, of Sentinels that know it, or of a cluster; see docs/redis.md."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from masc_core.errors import ConfigError

SCHEMES: Final = (
    *("redis", "rediss", "unix"),
    *("redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"),
)
CERTIFICATES: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password")
OPTIONS: Final = ("db", "username", "password")  # of a URL; the others below only with TLS
TLS_OPTIONS: Final = (*CERTIFICATES, "ssl_cert_reqs", "ssl_check_hostname")
SENTINEL_OPTIONS: Final = ("sentinel_username", "sentinel_password")
SENTINEL_PORT: Final = 26379
MAX_SOCKET_PATH: Final = 107  # bytes, in Linux
CERT_REQS: Final = ("none", "optional", "required")


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL that was read; those in it are plain, of one server each.

    Attributes
    ----------
    server : of the queue's server; host and port mean nothing where others are asked for them
    seeds : of the Sentinels or the nodes of a cluster that are asked, none for a single server
    master : name that the Sentinels know, empty for a cluster
    """

    server: str
    seeds: tuple[str, ...] = ()
    master: str = ""

    @classmethod
    def read(cls, url: str) -> Self:
        """Read a URL, and refuse what would be misread, or found at the first connection only.

        Raises
        ------
        ValueError : such a URL; no message holds a part of it that may be of a password
        ConfigError : the same, with what is known to be wrong
        """
        if re.search(r"[\0-\x20\x7f]", url) or "\0" in unquote(url):  # which urlsplit leaves out
            raise ConfigError("the URL has a space or a control character")
        scheme, _, rest = url.partition("://")
        authority, path, query = _split(rest)
        if "#" in url or "@" in path + query:
            raise ConfigError(
                "the URL cannot be read: in a password, write / # ? @ as %2F %23 %3F %40"
            )
        base, _, way = scheme.lower().partition("+")
        if not way:
            _check_server(url)
            return cls(url)
        user, at, hosts = authority.rpartition("@")
        own = [part for part in query.split("&") if part.partition("=")[0] in SENTINEL_OPTIONS]
        others = "&".join(part for part in query.split("&") if part not in own)
        master, _, db = path.strip("/").partition("/") if way == "sentinel" else ("", "", path[1:])
        servers = [f"{base}://{user}{at}{host}/{db}?{others}" for host in hosts.split(",")]
        for server in servers:
            _check_server(server)
            if not urlsplit(server).hostname:
                raise ConfigError("the URL has a host without a name")
        if way == "cluster":
            if own or int(_options_in(urlsplit(servers[0])).get("db") or db or 0):
                raise ConfigError("a cluster has no Sentinels, and no other database than 0")
            return cls(servers[0], tuple(servers))
        if not re.fullmatch(r"[\w.-]+", master, re.ASCII):
            raise ConfigError("the URL names no master, as in redis+sentinel://HOST:26379/MASTER/0")
        return cls(servers[0], tuple(_sentinels(base, hosts.split(","), own, others)), master)


def _split(rest: str) -> tuple[str, str, str]:
    """Authority, path and query; of these ``urlsplit`` reads no list of hosts."""
    before, _, query = rest.partition("?")
    authority, slash, path = before.partition("/")
    return authority, slash + path, query


def _sentinels(base: str, hosts: list[str], own: list[str], others: str) -> Iterator[str]:
    """URLs of the Sentinels, with what lets us in there."""
    given = parse_qsl("&".join(own), keep_blank_values=True, strict_parsing=bool(own))
    if len(dict(given)) < len(given) or not dict(given).keys() <= set(SENTINEL_OPTIONS):
        raise ConfigError(f"the URL has more than one each of {', '.join(SENTINEL_OPTIONS)}")
    name, password = (quote(dict(given).get(option, ""), safe="") for option in SENTINEL_OPTIONS)
    user = f"{name}:{password}@" if password else ""
    tls = "&".join(part for part in others.split("&") if part.startswith(TLS_OPTIONS))
    for host in hosts:
        port = "" if urlsplit(f"//{host}").port else f":{SENTINEL_PORT}"
        yield f"{base}://{user}{host}{port}?{tls}"


def _check_server(url: str) -> None:
    """Refuse the URL of one server."""
    parts = urlsplit(url)
    options = _options_in(parts)
    if parts.scheme == "unix":
        if parts.hostname or not parts.path:
            raise ConfigError("the URL needs an absolute path, as in unix:///run/redis.sock?db=0")
        if len(os.fsencode(unquote(parts.path))) > MAX_SOCKET_PATH:
            raise ConfigError(f"the URL's path has more than {MAX_SOCKET_PATH} bytes")
    elif not re.fullmatch(r"(/\d*)?", parts.path):
        raise ConfigError("the URL's path is no number of a database")
    if "," in (parts.hostname or ""):
        raise ConfigError(
            "a URL of several hosts begins with redis+sentinel:// or redis+cluster://"
        )
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
