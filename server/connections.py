"""Connections of a front end: bounded in number, and bounded until a request is there.

Uvicorn's protocol over h11, which ignores upgrades that nobody here can do, with limits that it
lacks: how many bytes and how much time a request's head takes, how many connections there are, and
one log line a minute where a client could write thousands. A refused client is told why, in the
form of all errors, and gets time to read it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import resource
import sys
import time
from typing import Any, Final

import h11
import uvicorn
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from server.error_forms import error_response
from server.metrics import CloseReason, ServerMetrics
from server.settings import ServerSettings

logger = logging.getLogger(__name__)

# Of a request line with all headers, of a chunk's size, or of trailers; h11 looks after each part.
MAX_HEAD_BYTES: Final = 48 * 1024
PART_BYTES: Final = 16 * 1024
TARGET_BYTES: Final = 200  # of a head, in which its path is looked for
LINGER_SECONDS: Final = 2.0  # for a refused client to read why
LINGER_BYTES: Final = 4 * 1024 * 1024
MAX_LINGERING: Final = 32
STALL_SECONDS: Final = 60.0  # in which a client takes nothing of its answer
RESERVED_FILES: Final = 96  # the queue's connections, bundles, logs, and a burst of new sockets
QUIET_SECONDS: Final = 60.0


def possible_connections(wanted: int) -> int:
    """So many, or what the limit of open files leaves, which is raised as far as it can be."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # shells often start with 1,024
    if most == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, max(most - RESERVED_FILES, most // 2)))


class BoundedConfig(uvicorn.Config):
    """Uvicorn's configuration for `BoundedConnection`.

    Parameters
    ----------
    app : what is served
    settings : the limits
    metrics : counts refusals
    graceful_seconds : for what is under way at the end
    """

    def __init__(
        self, app: ASGIApp, settings: ServerSettings, metrics: ServerMetrics, graceful_seconds: int
    ) -> None:
        super().__init__(
            app,
            http=BoundedConnection,
            ws="none",
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            timeout_keep_alive=math.ceil(settings.keep_alive_timeout),
            timeout_graceful_shutdown=graceful_seconds,
            server_header=False,
            access_log=False,
            log_config=None,
        )
        self.metrics = metrics
        self.head_seconds = settings.head_timeout
        self.proxy_path = settings.root_path
        self.max_connections = possible_connections(settings.max_connections)
        # The longest waiting first.
        self.without_request: dict[BoundedConnection, None] = {}
        self.refused: dict[BoundedConnection, None] = {}


class BoundedConnection(H11Protocol):
    """One connection. It has a deadline whenever bytes are expected and no request is under way."""

    config: BoundedConfig

    def __init__(
        self,
        config: BoundedConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._refused = False
        self._discarded = 0
        self._head = b""  # how the latest one began

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request, in the place of another connection if there are too many."""
        super().connection_made(transport)
        self.config.without_request[self] = None
        self._deadline = self.loop.call_later(self.config.head_seconds, self._time_is_up)
        if len(self.connections) > self.config.max_connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Parse in parts: h11 limits what is incomplete, not a head that comes all at once."""
        for start in range(0, len(data), PART_BYTES):
            self._take_part(data[start : start + PART_BYTES])

    def on_response_complete(self) -> None:
        """Wait for the next request; uvicorn's time of keep-alive runs until its first byte."""
        super().on_response_complete()
        self._note_state(expect_bytes=bool(self.conn.trailing_data[0]))

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered."""
        super().pause_writing()
        self._watch_reader(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        self._stop_stall()

    def timeout_keep_alive_handler(self) -> None:
        """No other request has come."""
        self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_deadline()
        self._stop_stall()
        self.config.without_request.pop(self, None)
        self.config.refused.pop(self, None)
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what h11 cannot parse; called by uvicorn where it handles the exception."""
        error = sys.exception()
        status = getattr(error, "error_status_hint", 400)
        self._refuse(status, f"{error}" if error is not None else msg, "invalid")

    def _should_upgrade(self) -> bool:
        return False  # RFC 9110, 7.8: a server may ignore it, and answer as if nobody had asked

    @property
    def _has_request(self) -> bool:
        """Whether one is under way; before the first one there is no cycle."""
        return not getattr(self.cycle, "response_complete", True)

    @property
    def _path(self) -> str:
        """Path of the request, or of the head that is not whole, as far as it can be told."""
        words = self._head.decode(errors="replace").split()
        target = words[1] if len(words) > 1 else ""
        path = str(self.scope["path"]) if self._has_request else target
        return path.removeprefix(self.config.proxy_path)

    def _take_part(self, part: bytes) -> None:
        if self._refused:
            self._discard(len(part))
        elif not self.transport.is_closing():
            if not self._has_request and not self.conn.trailing_data[0]:
                self._head = part[:TARGET_BYTES]
            super().data_received(part)
            self._note_state(expect_bytes=True)

    def _note_state(self, *, expect_bytes: bool) -> None:
        if self._refused:
            return
        if self._has_request:
            self._stop_deadline()
            self.config.without_request.pop(self, None)
            return
        self.config.without_request.setdefault(self)
        is_between = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        had_request = getattr(self.cycle, "response_complete", False)
        if is_between and had_request and self.timeout_keep_alive_task is None:
            # What came was the rest of a request that had its answer.
            self._stop_deadline()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif expect_bytes and not is_between and self._deadline is None:
            self._deadline = self.loop.call_later(self.config.head_seconds, self._time_is_up)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _time_is_up(self) -> None:
        if self.conn.trailing_data[0]:
            seconds = f"{self.config.head_seconds:g}"
            self._refuse(408, f"a request's head has to be there within {seconds} s", "timeout")
        else:
            self._count("timeout")
            self._close()

    def _close(self) -> None:
        """Close, at once where a client leaves an answer unread."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _watch_reader(self, unread: int) -> None:
        """End a connection whose client has taken nothing for a while; slow ones stay."""

        def look_again() -> None:
            still_unread = self.transport.get_write_buffer_size()
            if still_unread < unread:
                self._watch_reader(still_unread)
            else:
                self._count("timeout")
                self.transport.abort()

        self._stop_stall()
        self._stall = self.loop.call_later(STALL_SECONDS, look_again)

    def _stop_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _make_room(self) -> None:
        if self.config.refused:
            self._abort_oldest_refused()
            return
        longest_waiting = next(iter(self.config.without_request), self)
        if longest_waiting is self:
            self._refuse(503, "there are too many connections", "full", {"Retry-After": "1"})
            return
        del self.config.without_request[longest_waiting]
        longest_waiting._stop_deadline()  # noqa: SLF001 - of the same class
        self._count("full")
        longest_waiting._close()  # noqa: SLF001

    def _abort_oldest_refused(self) -> None:
        oldest = next(iter(self.config.refused))
        del self.config.refused[oldest]
        oldest.transport.abort()

    def _refuse(
        self, status: int, detail: str, reason: CloseReason, headers: dict[str, str] | None = None
    ) -> None:
        """Answer with a problem document, if there is no answer yet, and close."""
        self._count(reason)
        self._refused = True
        self.config.refused[self] = None
        if len(self.config.refused) > MAX_LINGERING:
            self._abort_oldest_refused()
        self._stop_deadline()
        self.config.without_request.pop(self, None)
        is_head = self._has_request and self.scope["method"] == "HEAD"
        if self._has_request:
            self.cycle.disconnected = True  # what the application still sends goes nowhere
            self.cycle.message_event.set()
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            headers = {**(headers or {}), "Connection": "close"}
            answer = error_response(self._path, HTTPException(status, detail, headers))
            self._send(answer, with_body=not is_head)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        # Closing a socket with unread input sends a reset, which discards the response: linger.
        self._deadline = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _send(self, answer: Response, *, with_body: bool) -> None:
        events = [
            h11.Response(status_code=answer.status_code, headers=answer.raw_headers),
            *([h11.Data(data=bytes(answer.body))] if with_body else []),
            h11.EndOfMessage(),
        ]
        for event in events:
            self.transport.write(self.conn.send(event) or b"")

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > LINGER_BYTES:
            self.transport.abort()

    def _count(self, reason: CloseReason) -> None:
        self.config.metrics.connections_refused.labels(reason).inc()
        logger.warning("connections are closed: %s (masc_connections_refused_total)", reason)


class OnceAMinute:
    """Lets a text through once a minute: for what clients cause, as often as they like."""

    def __init__(self) -> None:
        self._quiet_until: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        if record.levelno != logging.WARNING:
            return True
        now, text = time.monotonic(), record.getMessage()
        if now < self._quiet_until.get(text, 0.0):
            return False
        self._quiet_until[text] = now + QUIET_SECONDS
        return True


for _name in (__name__, "uvicorn.error"):  # uvicorn's, of what h11 cannot parse
    logging.getLogger(_name).addFilter(OnceAMinute())
