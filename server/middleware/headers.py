"""Headers that are added to every answer, the security headers among them.

The page has no inline scripts or styles, and nothing from other origins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class AddHeaders:
    """Pure ASGI middleware that adds headers when an answer begins.

    Parameters
    ----------
    app : the application behind it
    headers_of : the headers, by the scope of the request
    """

    def __init__(self, app: ASGIApp, headers_of: Callable[[Scope], Mapping[str, str]]) -> None:
        self._app, self._headers_of = app, headers_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""

        async def add_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers_of(scope))
            await send(message)

        await self._app(scope, receive, add_headers if scope["type"] == "http" else send)
