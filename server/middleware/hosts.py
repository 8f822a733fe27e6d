"""The names under which the service may be called.

A page on ``evil.example`` whose name is made to lead to 127.0.0.1 (DNS rebinding) could otherwise
use a service that asks for no key. Addresses pass, for they cannot be made to lead elsewhere, and
names without a dot, which nobody outside of the network can own.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from masc_core.escapes import quoted
from server.error_forms import error_response

LOOPBACK_NAMES = ("*.localhost",)
HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[^\s:\[\]@/%]+)(:[0-9]*)?")
DETAIL = "this service is not known as {}; MASC_ALLOWED_HOSTS names what it is called"


class AllowedHosts:
    """Pure ASGI middleware that answers 421 to a ``Host`` that is not allowed.

    Parameters
    ----------
    app : the application behind it
    names : allowed besides; ``*.example.com`` is every name below, ``*`` every name
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http" and not self._allows(Headers(scope=scope).get("host", "")):
            detail = DETAIL.format(quoted(Headers(scope=scope)["host"]))
            answer = error_response(scope["path"], HTTPException(421, detail))
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allows(self, host: str) -> bool:
        if not host or "*" in self._names:
            return True
        match = HOST.fullmatch(host)
        if match is None:
            return False
        name = match["name"].rstrip(".").lower()
        if "." not in name or name in self._names or is_address(name):
            return True
        labels = name.split(".")
        return any(f"*.{'.'.join(labels[i:])}" in self._names for i in range(1, len(labels)))


def allowed_names(
    given: str, *, host: str, published_host: str, has_keys: bool
) -> tuple[str, ...] | None:
    """Names for `AllowedHosts`; None where every name is allowed.

    Parameters
    ----------
    given : names with commas between, of the settings
    host, published_host : where it listens, and where others reach it
    has_keys : whether clients need keys, which a foreign page does not have
    """
    names = tuple(name.removesuffix(".") for name in given.split(",") if name)
    if not names and (has_keys or not is_loopback(published_host or host)):
        return None
    return (*names, *LOOPBACK_NAMES, *filter(None, (host, published_host)))


def is_address(host: str) -> bool:
    """Whether a host is an IP address, perhaps in brackets."""
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; of names only ``localhost`` counts."""
    return ipaddress.ip_address(host).is_loopback if is_address(host) else host == "localhost"
