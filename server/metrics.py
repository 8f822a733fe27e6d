"""What the front end counts, and the middleware that counts it.

Labels come from fixed sets: an endpoint is a route's template, never a path, so nothing grows with
traffic. The gauges are read from the queue when they are scraped.
This module does not know what the worker counts; the two share only the histogram of stages.
"""

from __future__ import annotations

import asyncio
import time
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.problems import CLIENT_CLOSED_REQUEST
from worker.jobs.stages import SECONDS_BUCKETS, stage_histogram

RequestOutcome = Literal["ok", "invalid", "not_found", "rejected", "error", "cancelled", "timeout"]
OTHER_ENDPOINT = "other"


class ServerMetrics:
    """The metrics of one front end, registered once.

    Parameters
    ----------
    registry : what ``/metrics`` exposes; an embedded worker registers its own there as well
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "masc_requests_total",
            "Requests answered.",
            ["endpoint", "outcome"],
            registry=registry,
        )
        self.rejections = Counter(
            "masc_rejections_total",
            "Generations refused for want of capacity.",
            ["reason"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "masc_request_duration_seconds",
            "Time from a request's arrival to the end of its answer.",
            ["endpoint"],
            registry=registry,
            buckets=SECONDS_BUCKETS,
        )
        self.stage_seconds = stage_histogram(registry)
        self.queue_depth = Gauge(
            "masc_queue_depth", "Jobs that wait for a worker.", registry=registry
        )
        self.queue_oldest_age = Gauge(
            "masc_queue_oldest_age_seconds", "Age of the oldest job that waits.", registry=registry
        )
        self.ready = Gauge(
            "masc_ready", "Whether a worker for the default model is ready.", registry=registry
        )


class MeasureRequests:
    """Pure ASGI middleware that counts and times every request.

    Parameters
    ----------
    app : the application behind it
    metrics : where to count
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        outcome: RequestOutcome = "error"

        async def watch(message: Message) -> None:
            nonlocal outcome
            if message["type"] == "http.response.start":
                outcome = outcome_of(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Exception:
            outcome = "error"
            raise
        finally:
            endpoint = endpoint_of(scope)
            self._metrics.requests.labels(endpoint, outcome).inc()
            self._metrics.request_seconds.labels(endpoint).observe(time.perf_counter() - started)


def endpoint_of(scope: Scope) -> str:
    """Template of the route that took a request, or ``other``."""
    return getattr(scope.get("route"), "path", OTHER_ENDPOINT)


def outcome_of(status: int) -> RequestOutcome:
    """Class of a response's status."""
    if status < 400:
        return "ok"
    special: dict[int, RequestOutcome] = {
        404: "not_found",
        408: "timeout",
        429: "rejected",
        CLIENT_CLOSED_REQUEST: "cancelled",
        503: "rejected",
        504: "timeout",
    }
    return special.get(status, "invalid" if status < 500 else "error")
