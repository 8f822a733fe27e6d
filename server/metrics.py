"""Metrics of the front end, and the middleware that counts requests.

Labels come from fixed sets: an endpoint is a route's template, never a path. The queue's figures
are read when ``/metrics`` is scraped, and are the same at every front end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Final, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import CLIENT_CLOSED_REQUEST
from worker.jobs.priority import PRIORITIES
from worker.jobs.queue import (
    END_STATES,
    REDELIVERIES,
    ModelStats,
    PriorityStats,
    QueueStats,
    Totals,
    WorkerStatus,
)
from worker.jobs.stages import SECONDS_BUCKETS, stage_histogram

RequestOutcome = Literal["ok", "invalid", "not_found", "rejected", "error", "cancelled", "timeout"]
CloseReason = Literal["full", "invalid", "timeout"]  # why a connection was closed
OTHER_ENDPOINT = "other"
_FINAL_STATUS: Final = "masc.status"


class ServerMetrics:
    """The metrics of one front end, registered once; an embedded worker shares the registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.requests = counter(
            "masc_requests_total", "Requests answered.", ["endpoint", "outcome"]
        )
        self.rejections = counter(
            "masc_rejections_total", "Generations refused for want of capacity.", ["reason"]
        )
        self.connections_refused = counter(
            "masc_connections_refused_total",
            "Connections closed by the front end: too many, too slow, not HTTP.",
            ["reason"],
        )
        for reason in get_args(CloseReason):
            self.connections_refused.labels(reason)
        self.request_seconds = histogram(
            "masc_request_duration_seconds",
            "Time from a request's arrival to the end of its answer.",
            ["endpoint"],
            buckets=SECONDS_BUCKETS,
        )
        self.stage_seconds = stage_histogram(registry)
        self.first_preview_seconds = histogram(
            "masc_time_to_first_preview_seconds",
            "Time from the admission of a request that streams to its first preview.",
            buckets=SECONDS_BUCKETS,
        )
        self.queue = QueueCollector()
        registry.register(self.queue)
        self.ready = gauge(
            "masc_ready", "Whether work is taken, and a worker for the default model is ready."
        )
        self.draining = gauge("masc_draining", "Whether no more work is taken, before the end.")


class QueueCollector(Collector):
    """Gauges and counters of the whole queue, and of that of each model.

    Attributes
    ----------
    stats : of this scrape, None if the queue is down
    workers : statuses of this scrape; models are those of workers and those of jobs
    """

    def __init__(self) -> None:
        self.stats: QueueStats | None = None
        self.workers: Sequence[WorkerStatus] = ()

    def describe(self) -> Iterator[Metric]:
        """Names, by which the registry refuses duplicates."""
        yield _up(is_up=False)
        yield from _families(_NOTHING)
        yield from _model_families(_NOTHING, ())

    def collect(self) -> Iterator[Metric]:
        """Values; only ``masc_queue_up`` while the queue is down."""
        yield _up(is_up=self.stats is not None)
        if self.stats is not None:
            yield from _families(self.stats)
            yield from _model_families(self.stats, self.workers)


class MeasureRequests:
    """Pure ASGI middleware that counts and times every request."""

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

        async def note_status(message: Message) -> None:
            nonlocal outcome
            if message["type"] == "http.response.start":
                outcome = request_outcome(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Exception:
            outcome = "error"
            raise
        finally:
            status = final_status(scope)
            if status is not None:
                outcome = request_outcome(status)
            endpoint = endpoint_of(scope)
            self._metrics.requests.labels(endpoint, outcome).inc()
            self._metrics.request_seconds.labels(endpoint).observe(time.perf_counter() - started)


def set_final_status(scope: Scope, status: int) -> None:
    """Count a request under this status, although its answer has begun with another."""
    scope[_FINAL_STATUS] = status


def final_status(scope: Scope) -> int | None:
    """The status given by `set_final_status`; None if the answer's own counts."""
    return scope.get(_FINAL_STATUS)


def endpoint_of(scope: Scope) -> str:
    """Template of the route that took a request, or ``other``."""
    return getattr(scope.get("route"), "path", OTHER_ENDPOINT)


def request_outcome(status: int) -> RequestOutcome:
    """Class of a response's status."""
    if status < 400:
        return "ok"
    special: dict[int, RequestOutcome] = {
        404: "not_found",
        429: "rejected",
        CLIENT_CLOSED_REQUEST: "cancelled",
        503: "rejected",
        504: "timeout",
    }
    return special.get(status, "invalid" if status < 500 else "error")


_NOTHING: Final = QueueStats(0, 0, 0.0, Totals())


def _up(*, is_up: bool) -> Metric:
    return GaugeMetricFamily("masc_queue_up", "Whether the queue can be reached.", int(is_up))


def _families(stats: QueueStats) -> Iterator[Metric]:
    totals = stats.totals
    yield GaugeMetricFamily("masc_queue_depth", "Jobs that wait for a worker.", stats.depth)
    yield GaugeMetricFamily(
        "masc_queue_oldest_age_seconds", "Age of the oldest job that waits.", stats.oldest_age
    )
    depth = GaugeMetricFamily(
        "masc_queue_priority_depth",
        "Jobs of a priority that wait for a worker.",
        labels=["priority"],
    )
    age = GaugeMetricFamily(
        "masc_queue_priority_oldest_age_seconds",
        "Age of the oldest job of a priority that waits.",
        labels=["priority"],
    )
    for priority in PRIORITIES:
        waiting = stats.priorities.get(priority, PriorityStats(0, 0.0))
        depth.add_metric([priority], waiting.depth)
        age.add_metric([priority], waiting.oldest_age)
    yield depth
    yield age
    yield GaugeMetricFamily("masc_jobs_running", "Jobs that a worker has claimed.", stats.running)
    yield CounterMetricFamily("masc_jobs_accepted", "Jobs accepted.", totals.accepted)
    ended = CounterMetricFamily("masc_jobs_ended", "Jobs ended.", labels=["outcome"])
    for state in END_STATES:
        ended.add_metric([state], totals.ended.get(state, 0))
    yield ended
    again = CounterMetricFamily("masc_jobs_redelivered", "Jobs delivered anew.", labels=["reason"])
    for reason in REDELIVERIES:
        again.add_metric([reason], totals.redelivered.get(reason, 0))
    yield again
    yield CounterMetricFamily(
        "masc_jobs_dead_lettered",
        "Jobs given up because workers were lost with them.",
        totals.dead_lettered,
    )
    yield CounterMetricFamily(
        "masc_fenced_results",
        "Results refused because their worker had lost its lease.",
        totals.fenced,
    )
    yield CounterMetricFamily(
        "masc_unreadable_records",
        "Records set aside or passed over: damaged, or of another version.",
        totals.unreadable,
    )
    yield CounterMetricFamily(
        "masc_results_dropped",
        "Kept results that went early, because all together were too large.",
        totals.results_dropped,
    )


def _model_families(stats: QueueStats, workers: Sequence[WorkerStatus]) -> Iterator[Metric]:
    depth, age, rate, ready = (
        GaugeMetricFamily(f"masc_model_{name}", text, labels=["model"])
        for name, text in (
            ("queue_depth", "Jobs of the model that wait for a worker."),
            ("queue_oldest_age_seconds", "Age of the oldest job of the model that waits."),
            ("jobs_per_second", "Jobs of the model finished per second of late; 0 when unknown."),
            ("workers_ready", "Workers that make images with the model."),
        )
    )
    announced = {worker.model for worker in workers if worker.model}
    for model in sorted(announced | stats.models.keys()):
        own = stats.models.get(model, ModelStats())
        depth.add_metric([model], own.depth)
        age.add_metric([model], own.oldest_age)
        rate.add_metric([model], own.completion_rate)
        ready.add_metric([model], sum(worker.ready for worker in workers if worker.model == model))
    yield from (depth, age, rate, ready)
