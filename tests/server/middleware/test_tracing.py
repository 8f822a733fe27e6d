"""Spans of the front end; `tests.test_telemetry` has a whole trace, across processes."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from server.middleware.tracing import TraceRequests
from tests.server.service import Service
from worker.jobs.outcome import JobFailure
from worker.jobs.tracing import Tracer


@pytest.fixture
def spans(own_service: Service) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    tracer = Tracer("test", SimpleSpanProcessor(exporter))
    own_service.app.add_middleware(TraceRequests, tracer=tracer)
    return exporter


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_span_with_its_stages(
    own_service: Service, spans: InMemorySpanExporter, *, stream: bool
) -> None:
    own_service.generate(stream=stream)
    *stages, request = spans.get_finished_spans()
    assert (request.name, [span.name for span in stages]) == (
        "POST /generate",
        ["admit", "deliver"],
    )
    assert all(span.parent and span.parent.span_id == request.context.span_id for span in stages)
    assert request.status.is_ok or request.status.is_unset
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_is_an_error_although_a_stream_has_begun_well(
    own_service: Service, spans: InMemorySpanExporter, *, stream: bool
) -> None:
    own_service.painter.failure = JobFailure("NonFiniteError", "a NaN")
    own_service.generate(stream=stream)
    request = spans.get_finished_spans()[-1]
    assert request.status.description == "status 500"
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 500


def test_what_starts_no_work_is_not_traced(
    own_service: Service, spans: InMemorySpanExporter
) -> None:
    own_service.get("/models")
    assert not spans.get_finished_spans()
