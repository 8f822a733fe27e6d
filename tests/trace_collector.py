"""A collector of OpenTelemetry for tests: takes OTLP over HTTP, and keeps the spans."""

from __future__ import annotations

import gzip
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.loopback_server import LoopbackServer


@dataclass(frozen=True, slots=True)
class Collected:
    """A span as it was received; times are seconds since the epoch."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start: float
    end: float
    is_error: bool


class TraceCollector(LoopbackServer):
    """Listens between enter and exit, on a free port of loopback."""

    def __init__(self) -> None:
        self.spans: list[Collected] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                collector.spans += read_spans(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        super().__init__(Handler)

    def wait_for(self, trace_id: str, num: int, seconds: float = 30.0) -> list[Collected]:
        """So many spans of a trace; processes send every few seconds."""
        until = time.monotonic() + seconds
        while True:
            found = [span for span in self.spans if span.trace_id == trace_id]
            if len(found) >= num:
                return found
            assert time.monotonic() < until, found
            time.sleep(0.05)


def read_spans(body: bytes) -> list[Collected]:
    """Spans of one message."""
    message = ExportTraceServiceRequest.FromString(body)
    return [
        Collected(
            service=next(
                attribute.value.string_value
                for attribute in resource.resource.attributes
                if attribute.key == "service.name"
            ),
            name=span.name,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            start=span.start_time_unix_nano / 1e9,
            end=span.end_time_unix_nano / 1e9,
            is_error=span.status.code == 2,
        )
        for resource in message.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
