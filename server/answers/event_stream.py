"""Server-sent events as a response, and the generation whose response is such a stream.

An event is made when the client has taken the one before, so a slow reader costs one event of
memory. Comments fill the silence, so that no proxy takes the connection for dead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, aclosing, nullcontext
from functools import partial
from typing import Any, Final, Protocol

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from prometheus_client import Histogram
from starlette.types import Receive, Scope, Send

from masc_core.errors import DrainingError, MascError
from server.answers.job_updates import JobUpdate, job_updates, release, wait_for_disconnect
from server.drain import Drain
from server.errors import CLIENT_CLOSED_REQUEST, problem_type_of
from server.metrics import set_final_status
from server.middleware.tracing import stage
from server.state import AppState
from worker.jobs.job import Job, NumberedEvent, Preview
from worker.jobs.outcome import JobResult

KEEP_ALIVE_SECONDS = 15.0
LAST_EVENT_SECONDS = 1.0  # for a client to take it, when the front end ends
# When a browser comes back after the connection broke, in milliseconds. A line of the first event:
# alone it would be an event without data, which clients stumble over.
RETRY: Final = format_sse_event(retry=2000).removesuffix(b"\n\n") + b"\n"
HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStream(EventSourceResponse):
    """A response whose body is events.

    Parameters
    ----------
    events : encoded; closed when the stream ends
    headers : in addition to those of every stream
    on_close : called when the stream is over, however it ends, even before its first byte
    drain : of the front end, which may give up before the stream is over
    keep_alive_seconds : of silence, until a comment is sent
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        headers: Mapping[str, str] | None = None,
        on_close: Callable[[], Awaitable[None]] | None = None,
        drain: Drain | None = None,
        keep_alive_seconds: float = KEEP_ALIVE_SECONDS,
    ) -> None:
        super().__init__(events, headers={**HEADERS, **(headers or {})})
        self._events, self._on_close, self._drain = events, on_close, drain
        self._keep_alive_seconds = keep_alive_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client disconnects."""
        disconnect = asyncio.ensure_future(wait_for_disconnect(receive))
        sending = asyncio.ensure_future(self._send(send))
        aborted = asyncio.ensure_future(self._until_aborted())
        try:
            await asyncio.wait({disconnect, sending, aborted}, return_when="FIRST_COMPLETED")
            if sending.done():
                sending.result()
            elif disconnect.done():
                set_final_status(scope, CLIENT_CLOSED_REQUEST)
        finally:
            for task in (disconnect, sending, aborted):
                task.cancel()
            if self._on_close is not None:
                await self._on_close()
            await asyncio.gather(disconnect, sending, aborted, return_exceptions=True)
            await self._events.aclose()

    async def _until_aborted(self) -> None:
        """Return when the front end has given up, and the last event had its time."""
        if self._drain is None:
            await asyncio.get_running_loop().create_future()
            return
        await self._drain.until_aborted()
        await asyncio.sleep(LAST_EVENT_SECONDS)

    async def _send(self, send: Send) -> None:
        headers, status = self.raw_headers, self.status_code
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await _send_chunk(send, KEEPALIVE_COMMENT)  # headers reach the client at once
        opening = RETRY
        while (chunk := await self._next(send)) is not None:
            await _send_chunk(send, opening + chunk)
            opening = b""
        await _send_chunk(send, b"", more_body=False)

    async def _next(self, send: Send) -> bytes | None:
        """The next event, None after the last; keeps the connection alive until it comes."""
        upcoming = asyncio.ensure_future(anext(self._events, None))
        try:
            while not upcoming.done():
                await asyncio.wait({upcoming}, timeout=self._keep_alive_seconds)
                if not upcoming.done():
                    await _send_chunk(send, KEEPALIVE_COMMENT)
            return upcoming.result()
        finally:
            await _cancel(upcoming)


async def _send_chunk(send: Send, chunk: bytes, *, more_body: bool = True) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": more_body})


async def _cancel(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class EventEncoder(Protocol):
    """Encodes the updates of a job as server-sent events: ours, or those of the OpenAI API."""

    def encode(self, update: JobUpdate) -> Iterator[bytes]:
        """Events of one update; may be none."""

    def encode_error(self, error: MascError) -> bytes:
        """The last event when there are no images."""


async def sse_events(
    updates: AsyncGenerator[JobUpdate, None],
    encoder: EventEncoder,
    scope: Scope | None = None,
    delivery: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> AsyncGenerator[bytes, None]:
    """Encode every update; a failure is the last event.

    Parameters
    ----------
    scope : the request that fails with the job; None if the client only watches
    delivery : context in which the result is sent
    """
    try:
        async with aclosing(updates):
            async for update in updates:
                with delivery() if isinstance(update, JobResult) else nullcontext():
                    for event in encoder.encode(update):
                        yield event
    except MascError as error:
        if scope is not None:
            set_final_status(scope, problem_type_of(error).status)
        elif isinstance(error, DrainingError):
            return  # the job goes on, and a client that watches it comes back to another front end
        yield encoder.encode_error(error)


def stream_generation(
    state: AppState, scope: Scope, job: Job, encoder: EventEncoder, seconds: float
) -> EventStream:
    """Answer a request with the events of its job, which it waits for so many ``seconds``."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    working = ExitStack()
    working.enter_context(state.drain.working())
    updates = _time_first_preview(
        unless_aborted(job_updates(state.queue, job.id, until=until), state.drain),
        state.metrics.first_preview_seconds,
    )

    async def release_job() -> None:
        is_late = loop.time() >= until
        with working:
            await release(state, job, expired=is_late and seconds >= job.timeout)

    headers = {"Content-Location": f"{state.job_url(job.id)}/events", "Vary": "Accept"}
    delivery = partial(stage, state.metrics, scope, "deliver")
    events = sse_events(updates, encoder, scope, delivery)
    return EventStream(events, headers, release_job, state.drain)


async def unless_aborted(
    updates: AsyncGenerator[JobUpdate, None], drain: Drain
) -> AsyncGenerator[JobUpdate, None]:
    """Follow a job; `DrainingError` when the front end ends before it."""
    aborted = asyncio.ensure_future(drain.until_aborted())
    try:
        async with aclosing(updates):
            while True:
                upcoming = asyncio.ensure_future(anext(updates, None))
                try:
                    await asyncio.wait({upcoming, aborted}, return_when="FIRST_COMPLETED")
                    if not upcoming.done():
                        raise drain.error()
                    update = upcoming.result()
                finally:
                    await _cancel(upcoming)
                if update is None:
                    return
                yield update
    finally:
        aborted.cancel()


async def _time_first_preview(
    updates: AsyncGenerator[JobUpdate, None], first_preview_seconds: Histogram
) -> AsyncGenerator[JobUpdate, None]:
    """Measure how long the first preview takes."""
    started, seen = time.perf_counter(), False
    async with aclosing(updates):
        async for update in updates:
            if not seen and isinstance(update, NumberedEvent) and isinstance(update.event, Preview):
                first_preview_seconds.observe(time.perf_counter() - started)
                seen = True
            yield update
