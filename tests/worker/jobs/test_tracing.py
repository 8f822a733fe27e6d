from __future__ import annotations

import sys

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from masc_core.errors import ConfigError
from tests.test_imports import FRONT_END, run_python
from worker.jobs.job import GenerationRequest, Job
from worker.jobs.outcome import EXPIRED
from worker.jobs.tracing import STANDARD_VARIABLES, Tracer, open_tracer, trace_job

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SWITCHES = {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "none"}
JOB = Job(GenerationRequest("tiny", class_id=0, cfg_scale=1.0, seed=0), trace=PARENT)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans: InMemorySpanExporter) -> Tracer:
    return Tracer("test", SimpleSpanProcessor(spans))


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*STANDARD_VARIABLES, *SWITCHES, "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)


def test_traces_are_off_unless_an_endpoint_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_tracer("test", "") is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert open_tracer("test", "") is not None


@pytest.mark.parametrize("switch", SWITCHES)
def test_traces_can_be_switched_off(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(switch, SWITCHES[switch])
    assert open_tracer("test", "http://127.0.0.1:1") is None


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://a", "http://"])
def test_an_endpoint_that_is_none_is_named(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="MASC_TRACES_ENDPOINT: not the URL"):
        open_tracer("test", endpoint)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"masc\[tracing\]"):
        open_tracer("test", "http://127.0.0.1:1")


def test_variables_for_everybody_stop_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    assert open_tracer("test", "") is None
    assert "masc[tracing]" in caplog.text


def test_nothing_needs_the_extra_when_traces_are_off() -> None:
    imports = "\n".join(f"import {module}" for module in FRONT_END)
    extra = ("opentelemetry.sdk", "opentelemetry.exporter")
    absent = f"import sys\nsys.modules.update(dict.fromkeys({extra!r}))\n"
    off = "from worker.jobs.tracing import open_tracer\nprint(open_tracer('test', ''))"
    assert run_python(f"{absent}{imports}\n{off}") == "None\n"


def test_a_span_is_part_of_what_the_client_says(
    tracer: Tracer, spans: InMemorySpanExporter
) -> None:
    span = tracer.start("a", PARENT, "server", masc__x=1)
    assert span.traceparent[:36] == PARENT[:36]
    span.add_child("b", 1.0, 2.5)
    span.end()
    inner, outer = spans.get_finished_spans()
    assert (inner.start_time, inner.end_time) == (1_000_000_000, 2_500_000_000)
    assert inner.parent is not None
    assert inner.parent.span_id == outer.context.span_id
    assert outer.attributes == {"masc.x": 1}


@pytest.mark.parametrize("given", ["", "nonsense", "00-0-0-0", "00-" + "0" * 32 + "-1-01"])
def test_what_is_no_context_begins_a_trace(
    given: str, tracer: Tracer, spans: InMemorySpanExporter
) -> None:
    tracer.start("a", given).end()
    (span,) = spans.get_finished_spans()
    assert span.parent is None


def test_a_client_that_does_not_sample_is_heeded(
    tracer: Tracer, spans: InMemorySpanExporter
) -> None:
    span = tracer.start("a", PARENT[:-2] + "00")
    assert span.traceparent.endswith("-00")
    span.end()
    assert not spans.get_finished_spans()


def test_a_job_that_failed_is_an_error(tracer: Tracer, spans: InMemorySpanExporter) -> None:
    trace_job(tracer, JOB, EXPIRED, JOB.submitted_at + 1.5)
    (span,) = spans.get_finished_spans()
    assert span.status.description == "DeadlineError"
    assert not span.status.is_ok
    assert span.start_time is not None
    assert span.end_time == pytest.approx(span.start_time + 1.5e9, abs=1e3)
    assert f"{span.context.trace_id:032x}" in PARENT
