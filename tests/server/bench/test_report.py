from __future__ import annotations

import asyncio
import io
import json
import math
import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from rich.console import Console

from server.bench.report import (
    MAX_SAMPLES,
    Percentiles,
    Report,
    describe_load,
    headline,
    report_tables,
)
from tests.server.bench.reports import (
    STAGES,
    failed,
    mixed_record,
    ok,
    record_of,
    refused,
    report_of,
)
from tests.server.bench.runs import make_plan, run_load
from tests.server.bench.stand_in import picture, refusal


def test_json_gives_the_same_report_again() -> None:
    report = report_of(mixed_record(unanswered=3), interrupted=True, rate=2.0, duration=200.0)
    document = report.model_dump_json(indent=2)
    assert Report.model_validate_json(document) == report
    assert json.loads(document)["rejections"]["429"]["retry_after"] is None
    empty = report_of(record_of([]))
    assert Report.model_validate_json(empty.model_dump_json()) == empty


def test_every_request_is_in_one_place() -> None:
    report = report_of(mixed_record(unanswered=3), interrupted=True, duration=200.0)
    assert (report.ok, report.errors, report.unanswered) == (100, 5, 3)
    refusals = {status: found.latency.count for status, found in report.rejections.items()}
    assert refusals == {503: 40, 429: 20}
    assert report.sent == 168
    assert report.reasons == {"503 Full": 40, "429 Full": 20, "timed out": 5}
    assert report.versions == {"tiny/7": 100}
    assert report.first_detail == "why"


def test_latency_counts_from_when_a_request_was_due() -> None:
    report = report_of(record_of([ok(1.0, 0.2, late=0.5), ok(2.0, 0.2)]))
    assert report.latency is not None
    assert report.latency.max == pytest.approx(0.7)
    assert report.latency.mean == pytest.approx(0.45)
    assert report.lag is not None
    assert report.lag.max == pytest.approx(0.5)
    assert report.http is not None
    assert report.http.max == pytest.approx(0.2 - STAGES["total"])
    assert set(report.stages) == set(STAGES)
    assert report.stages["decode"].p50 == pytest.approx(STAGES["decode"])


def test_percentiles_are_those_of_the_images_alone() -> None:
    report = report_of(mixed_record(), duration=200.0)
    latencies = [0.1 + i / 500 + 0.001 * (i % 3) for i in range(100)]
    assert report.latency is not None
    assert report.latency.p99 == pytest.approx(np.percentile(latencies, 99))
    assert report.latency.p50 == pytest.approx(np.percentile(latencies, 50))
    assert report.rejections[503].latency.max == pytest.approx(0.004)
    assert report.rejections[429].latency.max == pytest.approx(0.002)
    wait = report.rejections[503].retry_after
    assert wait is not None
    assert (wait.p50, wait.max) == (2.0, 2.0)


def test_throughput_is_what_came_back_in_the_measured_time() -> None:
    samples = [
        ok(-0.5, 0.4),  # warm-up, answered in the warm-up
        ok(-0.5, 0.6),  # warm-up, answered in the measured time
        ok(1.0, 1.0, images=4),
        ok(9.9, 1.0),  # answered too late
        refused(3.0, 0.1),
        failed(4.0),
    ]
    report = report_of(record_of(samples))
    assert report.seconds == 10.0
    assert report.throughput.requests_per_second == pytest.approx(0.2)
    assert report.throughput.images_per_second == pytest.approx(0.5)
    assert report.throughput.rejections_per_second == pytest.approx(0.1)
    assert report.ok == 2
    assert report.latency is not None
    assert report.latency.count == 2


@pytest.mark.parametrize(
    ("options", "interrupted", "seconds"),
    [
        ({}, False, 10.0),  # all is answered sooner, but something might have been due
        ({"requests": 2}, False, 2.5),
        ({"requests": 2, "duration": 2.0}, False, 2.0),
        ({"requests": 3}, False, 10.0),
        ({}, True, 2.5),
    ],
)
def test_the_measured_time(options: dict[str, Any], interrupted: bool, seconds: float) -> None:
    record = record_of([ok(1.0), ok(2.0, 0.5)])
    assert report_of(record, interrupted=interrupted, **options).seconds == pytest.approx(seconds)


def test_a_run_broken_off_in_its_warm_up_has_measured_nothing() -> None:
    report = report_of(record_of([ok(-2.0), ok(-1.0)]), interrupted=True)
    assert (report.seconds, report.sent, report.ok, report.latency) == (0.0, 0, 0, None)
    assert report.throughput.requests_per_second == 0.0


def test_samples_are_thinned_evenly() -> None:
    few = report_of(record_of([ok(1.0, 0.25), refused(2.0, 0.125)]))
    assert [(s.due, s.latency, s.status) for s in few.samples] == [
        (1.0, 0.25, 200),
        (2.0, 0.125, 503),
    ]
    many = report_of(record_of(ok(i / 1000) for i in range(2 * MAX_SAMPLES + 1)))
    assert MAX_SAMPLES / 2 < len(many.samples) <= MAX_SAMPLES
    assert np.ptp(np.diff([sample.due for sample in many.samples])) < 1e-9


def test_refusals_of_a_real_server_are_apart_from_its_images() -> None:
    async def full_now_and_then(number: int, body: dict[str, Any]) -> web.StreamResponse:
        if number % 4 == 1:
            return refusal(503, **{"Retry-After": "7"})
        if number % 4 == 2:
            return refusal(429, "Too many requests", **{"Retry-After": "1"})
        if number % 8 == 3:
            return refusal(500, "Broken")
        await asyncio.sleep(0.05)
        return picture()

    record, _ = run_load(make_plan((0,), requests=40), full_now_and_then)
    report = report_of(record, rate=None, clients=1, requests=40)
    assert (report.sent, report.ok, report.errors) == (40, 15, 5)
    for status, wait in ((503, 7.0), (429, 1.0)):
        rejections = report.rejections[status]
        assert rejections.latency.count == 10
        assert rejections.retry_after is not None
        assert rejections.retry_after.p50 == wait
    assert report.latency is not None
    assert report.latency.count == 15
    assert report.latency.p50 >= 0.05 > report.rejections[503].latency.p50
    assert report.reasons["500 Broken"] == 5
    assert report.first_detail == "Broken, in detail"


def interpolated(values: list[float], share: float) -> float:
    """The definition: linear between the two nearest of the sorted values."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@pytest.mark.parametrize("number", [1, 2, 3, 100, 1001])
def test_percentiles_by_their_definition(number: int) -> None:
    values = [random.Random(number).expovariate(3.0) for _ in range(number)]
    found = Percentiles.of(np.array(values))
    assert found is not None
    assert found.count == number
    assert found.mean == pytest.approx(math.fsum(values) / number)
    shares = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}
    for name, share in shares.items():
        assert getattr(found, name) == pytest.approx(interpolated(values, share)), name
    ascending = [found.p50, found.p90, found.p95, found.p99, found.max]
    assert all(a <= b for a, b in pairwise(ascending))


def test_what_is_not_known_does_not_count() -> None:
    found = Percentiles.of(np.array([np.nan, 2.0, np.nan, 4.0]))
    assert found is not None
    assert (found.count, found.p50, found.max) == (2, 3.0, 4.0)


@pytest.mark.parametrize("values", [[], [math.nan, math.nan]])
def test_of_nothing_there_are_no_percentiles(values: list[float]) -> None:
    assert Percentiles.of(np.array(values, float)) is None


def shown(report: Report) -> str:
    console = Console(file=io.StringIO(), width=120, highlight=False)
    console.print(report_tables(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def cells(text: str, name: str) -> list[str]:
    """The row of the tables that begins with a name."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    return next(row for row in rows if row and row[0] == name)


def test_the_tables_of_a_run_in_which_everything_happened() -> None:
    report = report_of(mixed_record(unanswered=3), interrupted=True, rate=2.0, duration=200.0)
    text = shown(report)
    assert text.startswith("http://127.0.0.1:8000: MASC 1.2.3, tiny 7, open loop, 2 requests/s, ")
    assert cells(text, "sent")[1] == "168"
    assert cells(text, "ok")[1:3] == ["100", "59.5%"]
    assert cells(text, "refused, 503")[1] == "40"
    assert cells(text, "refused, 429")[1] == "20"
    assert cells(text, "errors")[1] == "5"
    assert cells(text, "not waited for")[1] == "3"
    assert cells(text, "until refused, 503")[1:] == ["40", *["4.0"] * 6]
    assert cells(text, "decode")[1:] == ["100", *["30.0"] * 6]
    assert report.latency is not None
    assert cells(text, "latency")[3] == f"{1000 * report.latency.p50:.1f}"
    assert cells(text, "latency")[-1] == f"{1000 * report.latency.max:.1f}"
    assert cells(text, "sent too late by")[-1] == "2.0"
    assert "Retry-After with 503: p50 2 s, longest 2 s" in text
    assert "Retry-After with 429: none" in text
    assert "40 x 503 Full" in text
    assert "the first error: why" in text
    assert "needs more of a processor" not in text


def test_a_client_that_was_late_says_so() -> None:
    report = report_of(record_of([ok(float(i), late=0.05) for i in range(5)]))
    assert "sent up to 50 ms too late (p99)" in " ".join(shown(report).split())


def test_nothing_measured_is_shown_as_well() -> None:
    text = shown(report_of(record_of([])))
    assert cells(text, "sent")[1] == "0"
    assert cells(text, "ok")[1:3] == ["0", "0.0%"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rate": 0.5}, "open loop, 0.5 requests/s"),
        ({"rate": None, "clients": 1}, "closed loop, 1 client"),
        ({"rate": None, "clients": 50}, "closed loop, 50 clients"),
    ],
)
def test_the_loop_is_named(options: dict[str, float | None], text: str) -> None:
    report = report_of(record_of([]), interrupted=True, **options)
    assert describe_load(report.options) == text
    assert headline(report).endswith(f"{text}, 0.0 s, broken off")
