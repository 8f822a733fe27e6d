"""Traces: spans of requests and jobs, sent to a collector of OpenTelemetry.

The context of a trace travels as a W3C ``traceparent``: as a header into the front end, in the job
to the worker. OpenTelemetry is imported only where traces are on.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit, urlunsplit

from masc_core.errors import ConfigError
from worker.jobs.job import Job
from worker.jobs.outcome import JobFailure, Outcome
from worker.jobs.stages import TIMED_STAGES

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span as SdkSpan
    from opentelemetry.trace import Tracer as SdkTracer

logger = logging.getLogger(__name__)

VARIABLE = "MASC_TRACES_ENDPOINT"
STANDARD_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
TRACES_PATH = "/v1/traces"
NANOSECONDS = 1_000_000_000

Kind = Literal["server", "consumer", "internal"]
Attribute = str | int | float | bool


class Span:
    """One span of the SDK, to which children can be added."""

    def __init__(self, tracer: SdkTracer, span: SdkSpan) -> None:
        self._tracer, self._span = tracer, span

    @property
    def traceparent(self) -> str:
        """What makes other spans its children, in whatever process."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def add_child(self, name: str, start: float, end: float) -> None:
        """Add a child that is over; times are seconds since the epoch."""
        from opentelemetry.trace import set_span_in_context  # noqa: PLC0415 - traces are on

        context = set_span_in_context(self._span)
        child = self._tracer.start_span(name, context, start_time=_nanoseconds(start))
        child.end(_nanoseconds(end))

    def end(self, error: str = "", at: float | None = None, **attributes: Attribute) -> None:
        """End it, well or with an error, ``at`` seconds since the epoch or now.

        Names of attributes have dots for double underscores.
        """
        from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415 - traces are on

        self._span.set_attributes(_dotted(attributes))
        if error:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(None if at is None else _nanoseconds(at))


class Tracer:
    """Makes the spans of one process. What has not been sent goes out when the process ends.

    Parameters
    ----------
    service : name of the process, unless ``OTEL_SERVICE_NAME`` gives another
    processor : what is done with spans that are over
    """

    def __init__(self, service: str, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - traces are on
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - traces are on

        name = os.environ.get("OTEL_SERVICE_NAME") or service
        self._provider = TracerProvider(resource=Resource.create({"service.name": name}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("masc")

    def start(
        self,
        name: str,
        traceparent: str = "",
        kind: Kind = "internal",
        at: float | None = None,
        **attributes: Attribute,
    ) -> Span:
        """Begin a span, ``at`` seconds since the epoch or now.

        The span belongs to the trace of ``traceparent``, or begins one where that is not valid.
        Double underscores in names of attributes become dots.
        """
        from opentelemetry.context import Context  # noqa: PLC0415 - traces are on
        from opentelemetry.trace import SpanKind  # noqa: PLC0415 - traces are on
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415 - traces are on
            TraceContextTextMapPropagator,
        )

        carrier = {"traceparent": traceparent}
        context = TraceContextTextMapPropagator().extract(carrier, Context())
        span = self._tracer.start_span(
            name,
            context,
            SpanKind[kind.upper()],
            _dotted(attributes),
            start_time=None if at is None else _nanoseconds(at),
        )
        return Span(self._tracer, span)


def trace_job(tracer: Tracer, job: Job, outcome: Outcome, ended: float) -> None:
    """Record a job from its submission to its end, seconds since the epoch.

    Its stages are drawn one after the other, as long as its timings say. With several images they
    really overlap, and encoding is the sum over the images.
    """
    span = tracer.start(
        "job",
        job.trace,
        "consumer",
        job.submitted_at,
        masc__job__id=job.id,
        masc__model__name=job.request.model,
        masc__images=job.request.num_images,
    )
    if isinstance(outcome, JobFailure):
        span.end(outcome.error, ended)
        return
    start, seconds_of = job.submitted_at, outcome.timings.by_stage()
    for stage in TIMED_STAGES:
        if stage in seconds_of:
            end = start + seconds_of[stage]
            span.add_child(stage, start, end)
            start = end
    span.end(at=ended, masc__model__version=outcome.version)


def open_tracer(service: str, endpoint: str) -> Tracer | None:
    """The tracer of a process; None where traces are off.

    Parameters
    ----------
    service : name of the process
    endpoint : URL of a collector that takes OTLP over HTTP, the path may be left out; if empty,
        OpenTelemetry's own variables decide

    Raises
    ------
    ConfigError : no such URL; or OpenTelemetry, which it asks for, is not installed
    """
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if is_disabled or os.environ.get("OTEL_TRACES_EXPORTER", "").lower() == "none":
        return None
    if not endpoint and not any(os.environ.get(name) for name in STANDARD_VARIABLES):
        return None
    url = _traces_url(endpoint) if endpoint else None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - traces are on
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - traces are on
    except ModuleNotFoundError as error:
        advice = "traces need pip install 'masc[tracing]'"
        if endpoint:
            raise ConfigError(f"{VARIABLE}: {advice}") from error
        logger.warning("%s: %s", " or ".join(STANDARD_VARIABLES), advice)
        return None  # they are set for everybody on some machines
    return Tracer(service, BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))


def _traces_url(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError(f"{VARIABLE}: not the URL of a collector, such as http://127.0.0.1:4318")
    return urlunsplit(parts if parts.path.strip("/") else parts._replace(path=TRACES_PATH))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * NANOSECONDS)


def _dotted(attributes: dict[str, Attribute]) -> dict[str, Attribute]:
    return {name.replace("__", "."): value for name, value in attributes.items()}
