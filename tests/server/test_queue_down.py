"""A front end whose queue cannot be reached."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from prometheus_client import CollectorRegistry

from masc_core.bundle.registry import Registry
from masc_core.errors import QueueDownError
from server.app import create_app
from tests.server.service import Service, assert_problem
from worker.jobs.job import Job, NumberedEvent
from worker.jobs.memory import MemoryQueue
from worker.jobs.outcome import Outcome
from worker.jobs.queue import JobStatus, QueueStats, Receipt, WorkerStatus


class _QueueAway(MemoryQueue):
    """A queue that is away, or that goes away once workers have been asked for."""

    def __init__(self, *, knows_workers: bool) -> None:
        super().__init__()
        self.knows_workers = knows_workers

    async def submit(self, job: Job, share: float = 1.0) -> Receipt:
        _away()

    async def outcome(self, job_id: str) -> Outcome:
        _away()

    async def events(self, job_id: str, after: int = 0) -> AsyncIterator[NumberedEvent]:
        _away()
        yield

    async def status(self, job_id: str) -> JobStatus:
        _away()

    async def cancel(self, job_id: str, state: object = "cancelled") -> None:
        _away()

    async def forget(self, job_id: str) -> None:
        _away()

    async def stats(self) -> QueueStats:
        _away()

    async def workers(self) -> Sequence[WorkerStatus]:
        return [WorkerStatus("w", True, "tiny", "v1")] if self.knows_workers else _away()


def _away() -> NoReturn:
    raise QueueDownError("the queue cannot be reached", 2.0)


@pytest.fixture(params=[True, False])
def away(tmp_path: Path, request: pytest.FixtureRequest) -> Service:
    service = Service(tmp_path, working=False)
    service.registry = CollectorRegistry()
    queue = _QueueAway(knows_workers=request.param)
    service.app = create_app(service.settings, queue, Registry(service.root), service.registry)
    return service


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("POST", "/generate", {"json": {"class_id": 0}}),
        ("POST", "/generate", {"json": {"class_id": 0, "stream": True}}),
        ("POST", "/jobs", {"json": {"class_id": 0}}),
        ("GET", "/jobs/x", {}),
        ("DELETE", "/jobs/x", {}),
        ("GET", "/jobs/x/events", {}),
        ("GET", "/jobs/x/images/0", {}),
    ],
)
def test_the_client_is_told_to_come_back(
    away: Service, method: str, path: str, options: dict[str, Any]
) -> None:
    response = away.call(method, path, **options)
    problem = assert_problem(response, 503)
    assert problem["type"] == "urn:masc:problem:queue-down"
    assert response.headers["retry-after"] == "2"


def test_metrics_are_told_all_the_same(away: Service) -> None:
    away.call("GET", "/jobs/x")
    text = away.get("/metrics").text
    assert "masc_queue_up 0.0" in text
    assert 'endpoint="/jobs/{id}",outcome="rejected"' in text
    for name in ("masc_queue_depth", "masc_jobs_accepted_total", "masc_jobs_running"):
        assert name not in text
    assert away.get("/healthz").status_code == 200


def test_the_status_says_that_the_queue_is_away(away: Service) -> None:
    response = away.get("/status")
    assert response.status_code == 200
    assert response.json()["queue"] is None
