"""Traces of the requests that start work: a span of each, and of the stages of the front end.

A request that brings a ``traceparent`` becomes a part of its client's trace.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.metrics import ServerMetrics, final_status
from worker.jobs.tracing import Span, Tracer

PATHS: Final = frozenset({"/generate", "/jobs", "/v1/images/generations"})
_SPAN: Final = "masc.span"


class TraceRequests:
    """Pure ASGI middleware that traces what starts work."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app, self._tracer = app, tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in PATHS:
            await self._app(scope, receive, send)
            return
        span = scope[_SPAN] = self._tracer.start(
            f"POST {scope['path']}",
            Headers(scope=scope).get("traceparent", ""),
            "server",
            http__request__method="POST",
            http__route=scope["path"],
        )
        status = 0  # of the answer, or what a stream that had begun came to

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            status = final_status(scope) or status
            error = "" if 0 < status < 500 else "no answer" if not status else f"status {status}"
            span.end(error, http__response__status_code=status)


@contextmanager
def stage(
    metrics: ServerMetrics, scope: Scope, name: Literal["admit", "deliver"]
) -> Iterator[None]:
    """Time a stage of a request, for the metrics and for its trace if it has one."""
    started = time.time()
    with metrics.stage_seconds.labels(name).time():
        yield
    span = span_of(scope)
    if span is not None:
        span.add_child(name, started, time.time())


def span_of(scope: Scope) -> Span | None:
    """The span of a request; None where it is not traced."""
    return scope.get(_SPAN)


def traceparent_of(scope: Scope) -> str:
    """What makes a job part of its request's trace; empty where that is not traced."""
    span = span_of(scope)
    return "" if span is None else span.traceparent
