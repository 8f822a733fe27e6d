"""Reports of runs that never happened."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from server.bench.client import Answer, Sample
from server.bench.load import Record
from server.bench.options import read_options
from server.bench.report import Report, make_report
from server.bench.service import ServiceInfo

STARTED = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
SERVICE = ServiceInfo(version="1.2.3", model="tiny", model_version="7", weights_sha256="ab" * 32)
STAGES = {"queue": 0.01, "decode": 0.03, "total": 0.05}


def ok(due: float, seconds: float = 0.1, *, late: float = 0.0, images: int = 1) -> Sample:
    answer = Answer(images, STAGES, "tiny/7")
    return Sample(due, due + late, due + late + seconds, 200, answer)


def refused(due: float, seconds: float, status: int = 503, wait: float | None = 2.0) -> Sample:
    answer = Answer(retry_after=wait, problem="Full", detail="too full")
    return Sample(due, due, due + seconds, status, answer, f"{status} Full")


def failed(due: float, seconds: float = 1.0) -> Sample:
    return Sample(due, due, due + seconds, 0, Answer(detail="why"), "timed out")


def record_of(samples: Iterable[Sample], unanswered: int = 0) -> Record:
    record = Record()
    for sample in samples:
        record.sent += sample.due >= 0
        record.add(sample)
    record.sent += unanswered
    record.ended = max((row["finished"] for row in record.rows()), default=0.0)
    return record


def report_of(record: Record, *, interrupted: bool = False, **options: Any) -> Report:
    given = {"rate": 10.0, "duration": 10.0} | options
    return make_report(read_options(**given), SERVICE, record, STARTED, interrupted=interrupted)


def mixed_record(unanswered: int = 0) -> Record:
    """100 s of everything: a warm-up, images, both kinds of refusal, errors."""
    samples = [ok(-1.0 + i / 10, 0.5) for i in range(10)]
    samples += [ok(i, 0.1 + i / 500, late=0.001 * (i % 3), images=1) for i in range(100)]
    samples += [refused(i / 2, 0.004) for i in range(40)]
    samples += [refused(i / 2, 0.002, 429, None) for i in range(20)]
    samples += [failed(i) for i in range(5)]
    return record_of(samples, unanswered)
