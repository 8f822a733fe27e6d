"""The report of a run: as a JSON document, and as tables for a terminal.

Latencies are those of measured requests, from the moment each was due. Throughput counts answers
between time 0 and the end of the measured time, whenever they were requested. Times are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import AwareDatetime, BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from server.bench.client import REJECTIONS, STAGES, status_class
from server.bench.load import Record, Rows
from server.bench.options import BenchOptions
from server.bench.service import ServiceInfo

SCHEMA_VERSION = 1
MAX_SAMPLES = 10_000
MAX_REASONS = 5
LATE = 0.01  # seconds at p99 from which the load generator's own lag deserves a word


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Percentiles(_Part):
    """How some times are distributed; seconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: npt.NDArray[Any]) -> Percentiles | None:
        """Describe times, those left out that are NaN; None if there are none."""
        known = seconds[~np.isnan(seconds)]
        if not len(known):
            return None
        p50, p90, p95, p99 = map(float, np.percentile(known, (50, 90, 95, 99)))
        return cls(
            count=len(known),
            mean=float(known.mean()),
            p50=p50,
            p90=p90,
            p95=p95,
            p99=p99,
            max=float(known.max()),
        )


class Rejections(_Part):
    """Refusals of one status: how fast they came, and when clients may come again."""

    latency: Percentiles
    retry_after: Percentiles | None


class Throughput(_Part):
    """Answers a second."""

    requests_per_second: float
    images_per_second: float
    rejections_per_second: float


class SamplePoint(_Part):
    """One request."""

    due: float
    latency: float
    status: int


class Report(_Part):
    """Everything that one run measured.

    Attributes
    ----------
    seconds : length of the measured time
    interrupted : whether somebody broke it off
    sent, ok : measured requests, and those that were answered with images
    unanswered : requests whose answers nobody waited for, since the run was broken off
    rejections : by status
    errors : requests that were neither answered with images nor refused for want of capacity
    reasons : refusals and errors by what they say of themselves
    latency : from the moment a request was due to the end of its answer, of those that are ok
    lag : from the moment a request was due to the moment it was sent; the load generator's own
    http : what is left of the time from sending to the answer without the server's ``total``
    versions : answers by name and version of the model
    samples : requests in the order of their answers, evenly thinned to `MAX_SAMPLES`
    """

    schema_version: int = SCHEMA_VERSION
    started: AwareDatetime
    options: BenchOptions
    service: ServiceInfo
    seconds: float
    interrupted: bool
    sent: int
    ok: int
    unanswered: int
    rejections: dict[int, Rejections]
    errors: int
    reasons: dict[str, int]
    first_detail: str
    throughput: Throughput
    latency: Percentiles | None
    lag: Percentiles | None
    http: Percentiles | None
    stages: dict[str, Percentiles]
    versions: dict[str, int]
    samples: list[SamplePoint]


def make_report(
    options: BenchOptions,
    service: ServiceInfo,
    record: Record,
    started: datetime,
    *,
    interrupted: bool = False,
) -> Report:
    """Sum up a run that has ended."""
    rows = record.rows()
    seconds = measured_seconds(options, record, interrupted=interrupted)
    measured = rows[rows["due"] >= 0]
    ok = measured[measured["status"] == 200]
    stages = {name: Percentiles.of(ok[name]) for name in STAGES}
    return Report(
        started=started,
        options=options,
        service=service,
        seconds=seconds,
        interrupted=interrupted,
        sent=record.sent,
        ok=len(ok),
        unanswered=record.sent - len(measured),
        rejections=dict(_rejections(measured)),
        errors=sum(n for status, n in record.statuses.items() if status_class(status) == "error"),
        reasons=dict(record.reasons.most_common()),
        first_detail=record.first_detail,
        throughput=_throughput(rows, seconds),
        latency=Percentiles.of(ok["finished"] - ok["due"]),
        lag=Percentiles.of(measured["sent"] - measured["due"]),
        http=Percentiles.of(ok["finished"] - ok["sent"] - ok["total"]),
        stages={name: times for name, times in stages.items() if times is not None},
        versions=dict(record.models.most_common()),
        samples=_thin(measured),
    )


def measured_seconds(options: BenchOptions, record: Record, *, interrupted: bool = False) -> float:
    """Length of the measured time: the duration, or what there was of it."""
    ended = max(0.0, record.ended or 0.0)
    duration = math.inf if options.duration is None else options.duration
    cut_short = interrupted or record.sent == options.requests
    return min(duration, ended) if cut_short else duration


def _rejections(measured: Rows) -> Iterator[tuple[int, Rejections]]:
    for status in REJECTIONS:
        rows = measured[measured["status"] == status]
        latency = Percentiles.of(rows["finished"] - rows["due"])
        if latency is not None:
            retry_after = Percentiles.of(rows["retry_after"])
            yield status, Rejections(latency=latency, retry_after=retry_after)


def _throughput(rows: Rows, seconds: float) -> Throughput:
    within = rows[(rows["finished"] >= 0) & (rows["finished"] <= seconds)]
    ok = within[within["status"] == 200]
    rejected = np.isin(within["status"], REJECTIONS)
    counts = (len(ok), float(ok["num_images"].sum()), int(rejected.sum()))
    requests, images, rejections = (n / seconds if seconds > 0 else 0.0 for n in counts)
    return Throughput(
        requests_per_second=requests,
        images_per_second=images,
        rejections_per_second=rejections,
    )


def _thin(measured: Rows) -> list[SamplePoint]:
    kept = measured[:: max(1, math.ceil(len(measured) / MAX_SAMPLES))]
    return [
        SamplePoint(due=round(due, 6), latency=round(finished - due, 6), status=int(status))
        for due, finished, status in kept[["due", "finished", "status"]].tolist()
    ]


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
        times = "none" if wait is None else f"p50 {wait.p50:g} s, longest {wait.max:g} s"
        yield Text(f"Retry-After with {status}: {times}")
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
