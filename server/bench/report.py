"""The report of a run, as a JSON document.

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

from server.bench.answer import STAGES
from server.bench.options import BenchOptions
from server.bench.record import Record, Rows
from server.bench.sample import REJECTIONS, outcome_of
from server.bench.service import ServiceInfo


class Percentiles(BaseModel):
    """How some times are distributed; seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

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


SCHEMA_VERSION = 1
MAX_SAMPLES = 10_000


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
    started : when
    seconds : length of the measured time
    interrupted : whether somebody broke it off
    sent, ok : measured requests, and those that were answered with images
    unanswered : requests whose answers nobody waited for, since the run was broken off
    rejections : by status
    errors : requests that were neither answered with images nor refused for want of capacity
    reasons : refusals and errors by what they say of themselves
    first_detail : what the first error said in detail
    latency : from the moment a request was due to the end of its answer, of those that are ok
    lag : from the moment a request was due to the moment it was sent; the load generator's own
    http : what is left of the time from sending to the answer without the server's ``total``
    stages : as the server tells them
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
        errors=sum(n for status, n in record.statuses.items() if outcome_of(status) == "error"),
        reasons=dict(record.reasons.most_common()),
        first_detail=record.first_detail,
        throughput=_throughput(rows, seconds),
        latency=Percentiles.of(ok["finished"] - ok["due"]),
        lag=Percentiles.of(measured["sent"] - measured["due"]),
        http=Percentiles.of(ok["finished"] - ok["sent"] - ok["total"]),
        stages={name: found for name, found in stages.items() if found is not None},
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
