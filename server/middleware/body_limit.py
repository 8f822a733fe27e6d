"""Limits on the size of a body and on the time it takes to arrive.

``receive`` raises where a limit is passed, and the exception becomes a problem document. The time
counts up to the last byte, so a body that trickles in is refused too. A client that still sends
when its connection closes may never read the answer, so a moderate rest is discarded first.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.error_forms import error_response

# RFC 9112, 6.1: a proxy in front may have counted otherwise, and see other requests than we do.
TWO_LENGTHS = "the body has two lengths: Transfer-Encoding and Content-Length exclude each other"
DISCARD_BYTES = 16 * 1024 * 1024


class BodyLimit:
    """Pure ASGI middleware.

    Parameters
    ----------
    max_bytes : largest body that is let through
    timeout : seconds in which all of it has to be there
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if "transfer-encoding" in headers and "content-length" in headers:
                error = HTTPException(400, TWO_LENGTHS, headers={"Connection": "close"})
                await error_response(scope["path"], error)(scope, receive, send)
                return
            receive = self._limited(self._timed(receive), headers)
        await self._app(scope, receive, send)

    def _limited(self, receive: Receive, headers: Headers) -> Receive:
        received = 0

        async def limited() -> Message:
            nonlocal received
            if not received and _declared_length(headers) > self._max_bytes:
                if "expect" not in headers:  # such a client asks before it sends
                    await _discard(receive)
                raise self._refusal()
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                if message.get("more_body", False):
                    await _discard(receive)
                raise self._refusal()
            return message

        return limited

    def _timed(self, receive: Receive) -> Receive:
        deadline = asyncio.get_running_loop().time() + self._timeout
        complete = False

        async def timed() -> Message:
            nonlocal complete
            if complete:  # the next message is the disconnect, which has no deadline
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                detail = f"the body has to be there within {self._timeout:g} seconds"
                raise HTTPException(408, detail, headers={"Connection": "close"}) from None
            complete = not message.get("more_body", False)
            return message

        return timed

    def _refusal(self) -> HTTPException:
        detail = f"the body may have at most {self._max_bytes} bytes"
        return HTTPException(413, detail, headers={"Connection": "close"})


def _declared_length(headers: Headers) -> int:
    text = headers.get("content-length", "")
    return int(text[:20]) if text.isascii() and text.isdigit() else 0


async def _discard(receive: Receive) -> None:
    discarded = 0
    while discarded <= DISCARD_BYTES:
        try:
            message = await receive()
        except HTTPException:  # the time is up too, but the size is the error to report
            return
        discarded += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
