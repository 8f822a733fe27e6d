"""Server-sent events as an answer, from the first byte to the client's last.

Events are made when the client has taken the one before, so a slow reader costs what one event
costs. Silence is broken by comments, lest something on the way takes the connection for dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Final

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from server.errors import CLIENT_CLOSED_REQUEST
from server.intake.dispatch import wait_for_disconnect
from server.metrics import set_final_status

KEEP_ALIVE_SECONDS = 15.0
# When a browser comes back after the connection broke, in milliseconds. A line of the first event:
# alone it would be an event without data, which clients stumble over.
RETRY: Final = format_sse_event(retry=2000).removesuffix(b"\n\n") + b"\n"
HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

OnClose = Callable[[], Awaitable[None]]


class EventStream(EventSourceResponse):
    """A response whose body is events.

    Parameters
    ----------
    events : as they go over the wire; closed when the client leaves
    headers : besides those of every stream
    leave : what to do when the stream is over, however it ends, even before it has begun
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        headers: Mapping[str, str] | None = None,
        on_close: OnClose | None = None,
    ) -> None:
        super().__init__(events, headers={**HEADERS, **(headers or {})})
        self._events, self._on_close = events, on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, until they end or the client goes away."""
        disconnect = asyncio.ensure_future(wait_for_disconnect(receive))
        sending = asyncio.ensure_future(self._send(send))
        try:
            await asyncio.wait({disconnect, sending}, return_when="FIRST_COMPLETED")
            if sending.done():
                sending.result()
            else:
                set_final_status(scope, CLIENT_CLOSED_REQUEST)
        finally:
            await _end(disconnect)
            await _end(sending)
            await self._events.aclose()
            if self._on_close is not None:
                await self._on_close()

    async def _send(self, send: Send) -> None:
        headers, status = self.raw_headers, self.status_code
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await _send_chunk(send, KEEPALIVE_COMMENT)  # says at once that there is an answer
        opening = RETRY
        while (chunk := await self._next(send)) is not None:
            await _send_chunk(send, opening + chunk)
            opening = b""
        await _send_chunk(send, b"", more=False)

    async def _next(self, send: Send) -> bytes | None:
        """The next event, None after the last; keeps the connection alive until it comes."""
        upcoming = asyncio.ensure_future(anext(self._events, None))
        try:
            while not upcoming.done():
                await asyncio.wait({upcoming}, timeout=KEEP_ALIVE_SECONDS)
                if not upcoming.done():
                    await _send_chunk(send, KEEPALIVE_COMMENT)
            return upcoming.result()
        finally:
            await _end(upcoming)


async def _send_chunk(send: Send, chunk: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": more})


async def _end(task: asyncio.Future[None] | asyncio.Future[bytes | None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
