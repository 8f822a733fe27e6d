"""Connections that are not kept once a front end drains.

A client with a kept connection would otherwise send its next requests to the process that refuses
them, although others of the service are ready.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.drain import Drain


class CloseWhileDraining:
    """Pure ASGI middleware: answers that begin while draining are the last of their connections."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app, self._drain = app, drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""

        async def close_after(message: Message) -> None:
            if message["type"] == "http.response.start" and self._drain.is_draining:
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, close_after if scope["type"] == "http" else send)
