from __future__ import annotations

import io

import pytest
from rich.console import Console

from server.bench.report import Report, describe_load, headline, report_tables
from tests.server.bench.reports import mixed_record, ok, record_of, report_of


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
