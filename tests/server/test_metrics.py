from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter
from starlette.types import Message, Receive, Scope, Send

from server.metrics import MeasureRequests, ServerMetrics, request_outcome
from tests.server.service import Service
from worker.jobs.outcome import JobFailure
from worker.jobs.priority import Priority
from worker.jobs.queue import PriorityStats, QueueStats, Totals
from worker.jobs.stages import stage_histogram

REQUESTS = "masc_requests_total"


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "ok"),
        (304, "ok"),
        (404, "not_found"),
        (405, "invalid"),
        (408, "invalid"),  # the client was slow, not the service
        (413, "invalid"),
        (422, "invalid"),
        (429, "rejected"),
        (499, "cancelled"),
        (500, "error"),
        (503, "rejected"),
        (504, "timeout"),
    ],
)
def test_request_outcome(status: int, outcome: str) -> None:
    assert request_outcome(status) == outcome


def test_requests_are_counted_by_route_and_outcome(own_service: Service) -> None:
    own_service.generate()
    own_service.generate(num_images=0)
    own_service.generate(class_id=99)
    own_service.painter.failure = JobFailure("NonFiniteError", "a NaN")
    own_service.generate()
    for outcome in ("ok", "invalid", "not_found", "error"):
        assert own_service.sample(REQUESTS, endpoint="/generate", outcome=outcome) == 1
    assert own_service.sample("masc_request_duration_seconds_count", endpoint="/generate") == 4


def test_no_label_grows_with_traffic(own_service: Service) -> None:
    for i in range(30):
        own_service.get(f"/models/m{i}/classes")
        own_service.get(f"/x{i}")
        own_service.get(f"/static/f{i}")
        own_service.call(f"METHOD{i}", "/generate")
        own_service.generate(class_id=i, seed=i, num_images=i, model=f"m{i}")
    path = "/models/{name}/classes"
    assert own_service.sample(REQUESTS, endpoint=path, outcome="not_found") == 30
    assert own_service.sample(REQUESTS, endpoint="other", outcome="not_found") == 30
    assert own_service.sample(REQUESTS, endpoint="/static/{name}", outcome="not_found") == 30
    assert own_service.exposition().count(f"{REQUESTS}{{") < 8


@pytest.mark.parametrize("stream", [False, True])
def test_a_generation_observes_the_stages_of_the_front_end(
    own_service: Service, *, stream: bool
) -> None:
    own_service.generate(stream=stream)
    for stage in ("admit", "deliver"):
        assert own_service.sample("masc_stage_duration_seconds_count", stage=stage) == 1


def test_an_embedded_worker_shares_the_registry(own_service: Service) -> None:
    stage_histogram(own_service.registry).labels("decode").observe(1.0)
    text = own_service.get("/metrics").text
    assert 'masc_stage_duration_seconds_count{stage="decode"} 1.0' in text
    assert text.count("# TYPE masc_stage_duration_seconds ") == 1


def test_rejections_are_counted_by_reason(tmp_path: Path) -> None:
    with Service(tmp_path, working=False, max_queue=1, request_timeout=1.0) as service:
        service.generate()
        assert service.sample("masc_rejections_total", reason="no_worker") == 1
        service.announce()

        async def crowd() -> Sequence[int]:
            async with service.client() as client:
                calls = [client.post("/generate", json={"class_id": 0}) for _ in range(3)]
                return sorted(answer.status_code for answer in await asyncio.gather(*calls))

        assert asyncio.run(crowd()) == [503, 503, 504]
        assert service.sample("masc_rejections_total", reason="queue_full") == 2
        assert service.sample(REQUESTS, endpoint="/generate", outcome="rejected") == 3
        assert service.sample(REQUESTS, endpoint="/generate", outcome="timeout") == 1


def test_the_queue_is_told_as_it_is_at_the_scrape() -> None:
    registry = CollectorRegistry()
    metrics = ServerMetrics(registry)
    assert registry.get_sample_value("masc_queue_up") == 0
    assert registry.get_sample_value("masc_queue_depth") is None
    totals = Totals(9, {"ok": 3, "error": 2, "expired": 1}, {"lease_expired": 4}, 5, 6)
    waiting: dict[Priority, PriorityStats] = {
        "interactive": PriorityStats(2, 0.5),
        "batch": PriorityStats(5, 1.5),
    }
    metrics.queue.stats = QueueStats(7, 8, 1.5, totals, priorities=waiting)
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in metrics.queue.collect()
        for sample in family.samples
    }
    assert values == {
        ("masc_queue_up",): 1,
        ("masc_queue_depth",): 7,
        ("masc_queue_oldest_age_seconds",): 1.5,
        ("masc_queue_priority_depth", "interactive"): 2,
        ("masc_queue_priority_depth", "batch"): 5,
        ("masc_queue_priority_oldest_age_seconds", "interactive"): 0.5,
        ("masc_queue_priority_oldest_age_seconds", "batch"): 1.5,
        ("masc_jobs_running",): 8,
        ("masc_jobs_accepted_total",): 9,
        ("masc_jobs_ended_total", "ok"): 3,
        ("masc_jobs_ended_total", "error"): 2,
        ("masc_jobs_ended_total", "cancelled"): 0,
        ("masc_jobs_ended_total", "expired"): 1,
        ("masc_jobs_redelivered_total", "lease_expired"): 4,
        ("masc_jobs_redelivered_total", "handed_back"): 0,
        ("masc_jobs_redelivered_total", "unreadable"): 0,
        ("masc_jobs_dead_lettered_total",): 5,
        ("masc_fenced_results_total",): 6,
        ("masc_unreadable_records_total",): 0,
        ("masc_results_dropped_total",): 0,
    }
    metrics.queue.stats = None
    assert registry.get_sample_value("masc_queue_depth") is None


@pytest.mark.parametrize("name", ["masc_queue_depth", "masc_jobs_accepted"])
def test_nobody_else_may_use_the_queue_s_names(name: str) -> None:
    registry = CollectorRegistry()
    ServerMetrics(registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Counter(name, "Another.", registry=registry)


def measured(*sent: Message | BaseException) -> ServerMetrics:
    """Metrics after one request to an application that sends and raises this."""
    metrics = ServerMetrics(CollectorRegistry())

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        scope["seen"] = receive
        for item in sent:
            if isinstance(item, BaseException):
                raise item
            await send(item)

    async def ignore(_: Message) -> None:
        pass

    async def nothing() -> Message:
        return {"type": "http.disconnect"}

    async def run() -> None:
        await MeasureRequests(application, metrics)({"type": "http"}, nothing, ignore)

    if any(isinstance(item, BaseException) for item in sent):
        with pytest.raises((RuntimeError, asyncio.CancelledError)):
            asyncio.run(run())
    else:
        asyncio.run(run())
    return metrics


@pytest.mark.parametrize(
    ("sent", "outcome"),
    [
        ([{"type": "http.response.start", "status": 200}], "ok"),
        ([], "error"),
        ([RuntimeError()], "error"),
        ([{"type": "http.response.start", "status": 200}, RuntimeError()], "error"),
        ([asyncio.CancelledError()], "cancelled"),
    ],
)
def test_what_ends_badly_is_counted_so(
    sent: Sequence[Message | BaseException], outcome: str
) -> None:
    registry = measured(*sent).registry
    labels = {"endpoint": "other", "outcome": outcome}
    assert registry.get_sample_value(REQUESTS, labels) == 1


def test_other_protocols_pass_unmeasured() -> None:
    metrics = ServerMetrics(CollectorRegistry())
    seen: list[str] = []

    async def application(scope: Scope, _: Receive, __: Send) -> None:
        seen.append(scope["type"])

    async def never() -> Message:
        raise AssertionError

    async def ignore(_: Message) -> None:
        pass

    asyncio.run(MeasureRequests(application, metrics)({"type": "lifespan"}, never, ignore))
    assert seen == ["lifespan"]
    assert metrics.registry.get_sample_value(REQUESTS, {}) is None
