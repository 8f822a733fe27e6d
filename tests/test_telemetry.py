"""What running processes tell after some traffic: the contract's metrics, and traces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.command_line import wait_until_ready
from tests.contract_metrics import CONTRACT, FURTHER, MAY_BE_EMPTY, STAGES, ContractMetric, Process
from tests.faults.cluster import Cluster, FrontEnd
from tests.redis_server import RedisServer
from tests.tiny_bundle import save_tiny_bundle
from tests.trace_collector import Collected, TraceCollector

Exposition = dict[str, Metric]

ALL = (*CONTRACT, *FURTHER)
LIMIT = 2  # requests a minute
TRACE_ID, CLIENT_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
# Spans of a request: their processes, and what they are parts of.
SPANS = {
    "POST /generate": ("masc-server", None),
    "admit": ("masc-server", "POST /generate"),
    "deliver": ("masc-server", "POST /generate"),
    "job": ("masc-worker", "POST /generate"),
    "queue": ("masc-worker", "job"),
    "prefill": ("masc-worker", "job"),
    "decode": ("masc-worker", "job"),
    "vq_decode": ("masc-worker", "job"),
    "encode": ("masc-worker", "job"),
}
SUFFIXES = {"counter": {"_total"}, "histogram": {"_bucket", "_sum", "_count"}, "gauge": {""}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_tiny_bundle(root)
    return root


@pytest.fixture(scope="module")
def embedded(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Exposition:
    """What `masc serve` by itself exposes."""
    log = tmp_path_factory.mktemp("embedded") / "log"
    settings = {"MASC_MODELS_DIR": str(models), "MASC_THREADS": "1", "MASC_RATE_LIMIT": str(LIMIT)}
    front_end = FrontEnd(["masc", "serve", "--port", "0"], log, settings)
    try:
        with httpx.Client(base_url=front_end.url, timeout=30) as client:
            wait_until_ready(client)
            make_traffic(client)
            return read(f"{front_end.url}/metrics")
    finally:
        front_end.kill()


@dataclass(frozen=True, slots=True)
class Told:
    """What a front end and a worker with a Redis between them tell."""

    exposed: dict[Process, Exposition]
    spans: list[Collected]  # of the first request


@pytest.fixture(scope="module")
def told(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp("separate")
    with pytest.MonkeyPatch.context() as patch, RedisServer() as redis, TraceCollector() as traces:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with Cluster(
            folder, models, redis, rate_limit=LIMIT, traces_endpoint=traces.url
        ) as cluster:
            front_end = cluster.start().front_ends[0]
            with httpx.Client(base_url=front_end.url, timeout=30) as client:
                make_traffic(client)
            line = cluster.workers[0].find("metrics on http")
            worker = line[line.index("http://") :].strip()
            exposed: dict[Process, Exposition] = {
                "front end": read(f"{front_end.url}/metrics"),
                "worker": read(worker),
            }
            yield Told(exposed, traces.wait_for(TRACE_ID, len(SPANS)))


@pytest.fixture(scope="module")
def separate(told: Told) -> dict[Process, Exposition]:
    return told.exposed


def make_traffic(client: httpx.Client) -> None:
    """A request of every kind that some metric counts, the last of them refused."""
    traced = {"traceparent": f"00-{TRACE_ID}-{CLIENT_SPAN}-01"}
    assert client.post("/generate", json={"class_id": 0}, headers=traced).status_code == 200
    assert client.post("/generate", json={"class_id": 1, "stream": True}).status_code == 200
    assert client.post("/generate", json={"class_id": 2}).status_code == 429


def read(url: str) -> Exposition:
    text = httpx.get(url, timeout=30).text
    families = text_string_to_metric_families(text)
    return {family.name: family for family in families if not family.name.endswith("_created")}


def assert_as_agreed(metric: ContractMetric, exposed: Exposition) -> None:
    family = exposed[metric.family]
    assert family.type == metric.kind
    assert family.documentation.endswith(".")
    samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
    if metric.family in MAY_BE_EMPTY:
        return
    assert {sample.name for sample in samples} == {
        metric.family + suffix for suffix in SUFFIXES[metric.kind]
    }
    assert {frozenset(sample.labels) - {"le"} for sample in samples} == {metric.labels}
    if metric.buckets is not None:
        edges = {float(sample.labels["le"]) for sample in samples if "le" in sample.labels}
        assert sorted(edges) == [*metric.buckets, float("inf")]


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_one_process_exposes_it(metric: ContractMetric, embedded: Exposition) -> None:
    assert_as_agreed(metric, embedded)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_those_expose_it_that_know_it(
    metric: ContractMetric, separate: dict[Process, Exposition]
) -> None:
    for process, exposed in separate.items():
        if process in metric.processes:
            assert_as_agreed(metric, exposed)
        else:
            assert metric.family not in exposed


def test_nothing_else_is_exposed(embedded: Exposition, separate: dict[Process, Exposition]) -> None:
    known = {metric.family for metric in ALL}
    for exposed in (embedded, *separate.values()):
        assert set(exposed) <= known


def test_every_stage_is_timed(embedded: Exposition) -> None:
    samples = embedded["masc_stage_duration_seconds"].samples
    counts = {s.labels["stage"]: s.value for s in samples if s.name.endswith("_count")}
    assert set(counts) == STAGES
    assert min(counts.values()) >= 1


def test_a_preview_was_timed(embedded: Exposition, separate: dict[Process, Exposition]) -> None:
    for exposed in (embedded, separate["front end"]):
        samples = exposed["masc_time_to_first_preview_seconds"].samples
        assert sum(s.value for s in samples if s.name.endswith("_count")) == 1


def test_a_trace_goes_through_front_end_queue_and_worker(told: Told) -> None:
    spans = {span.name: span for span in told.spans}
    assert len(spans) == len(told.spans)
    assert {name: span.service for name, span in spans.items()} == {
        name: service for name, (service, _) in SPANS.items()
    }
    for name, (_, parent) in SPANS.items():
        assert spans[name].parent_id == (spans[parent].span_id if parent else CLIENT_SPAN), name
        assert spans[name].start <= spans[name].end, name
        assert not spans[name].is_error
    request, job = spans["POST /generate"], spans["job"]
    assert request.start <= job.start <= job.end <= request.end
    assert spans["decode"].end > spans["decode"].start
