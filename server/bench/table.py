"""A report as tables for a terminal: what became of the requests, and how long they took."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from server.bench.options import BenchOptions
from server.bench.report import Percentiles, Report

MAX_REASONS = 5
LATE = 0.01  # seconds at p99 from which the load generator's own lag deserves a word


def report_tables(report: Report) -> Group:
    """Everything that deserves a look; the rest is in the JSON."""
    return Group(Text(headline(report)), _counts(report), _times(report), *_remarks(report))


def headline(report: Report) -> str:
    """Say what was measured and how, in one line."""
    service = report.service
    return (
        f"{report.options.url}: MASC {service.version}, {service.model} {service.model_version}, "
        f"{describe_load(report.options)}, {report.seconds:.1f} s"
        f"{', broken off' if report.interrupted else ''}"
    )


def describe_load(options: BenchOptions) -> str:
    """Name the loop and its one figure."""
    if options.rate is not None:
        return f"open loop, {options.rate:g} requests/s"
    return f"closed loop, {options.clients} client{'' if options.clients == 1 else 's'}"


def _counts(report: Report) -> Table:
    table = Table("requests", "number", "share", "per second", "images/s")
    for column in table.columns[1:]:
        column.justify = "right"
    throughput = report.throughput
    images = f"{throughput.images_per_second:.2f}"
    table.add_row("sent", str(report.sent))
    _add(table, report, "ok", report.ok, f"{throughput.requests_per_second:.2f}", images)
    for status, rejections in report.rejections.items():
        _add(table, report, f"refused, {status}", rejections.latency.count)
    _add(table, report, "errors", report.errors)
    if report.unanswered:
        _add(table, report, "not waited for", report.unanswered)
    return table


def _add(table: Table, report: Report, name: str, number: int, *cells: str) -> None:
    table.add_row(name, str(number), f"{number / max(1, report.sent):.1%}", *cells)


def _times(report: Report) -> Table:
    table = Table("milliseconds", "number", "mean", "p50", "p90", "p95", "p99", "max")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, times in named_times(report):
        seconds = (times.mean, times.p50, times.p90, times.p95, times.p99, times.max)
        table.add_row(name, str(times.count), *(f"{1000 * each:.1f}" for each in seconds))
    return table


def named_times(report: Report) -> Iterator[tuple[str, Percentiles]]:
    """Every distribution of times with the name that a reader knows it by."""
    if report.latency is not None:
        yield "latency", report.latency
    for name, times in report.stages.items():
        yield f"  {name}", times
    if report.http is not None:
        yield "  http, network", report.http
    for status, rejections in report.rejections.items():
        yield f"until refused, {status}", rejections.latency
    if report.lag is not None and report.options.rate is not None:
        yield "sent too late by", report.lag


def _remarks(report: Report) -> Iterator[RenderableType]:
    for status, rejections in report.rejections.items():
        wait = rejections.retry_after
        said = "none" if wait is None else f"p50 {wait.p50:g} s, longest {wait.max:g} s"
        yield Text(f"Retry-After with {status}: {said}")
    for reason, number in list(report.reasons.items())[:MAX_REASONS]:
        yield Text(f"{number} x {reason}")
    if report.first_detail:
        yield Text(f"the first error: {report.first_detail}")
    if len(report.versions) > 1:
        yield Text(f"versions: {', '.join(f'{n} x {name}' for name, n in report.versions.items())}")
    if report.lag is not None and report.lag.p99 > LATE:
        yield Text(
            f"the client itself sent up to {1000 * report.lag.p99:.0f} ms too late (p99), which is "
            "in the latencies: it needs more of a processor"
        )
