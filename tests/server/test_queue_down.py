"""A front end whose queue cannot be reached."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
from prometheus_client import CollectorRegistry

from masc_core.bundle.registry import Registry
from masc_core.errors import QueueDownError
from server.app import create_app
from server.settings import ServerSettings
from tests.redis_server import RedisServer
from tests.server.asgi import until
from tests.server.service import Service, assert_problem, write_model
from worker.jobs.job import Job, NumberedEvent
from worker.jobs.memory import MemoryQueue
from worker.jobs.outcome import Outcome
from worker.jobs.queue import JobStatus, QueueLimits, QueueStats, Receipt, WorkerStatus
from worker.jobs.redis.queue import RedisQueue


class _QueueAway(MemoryQueue):
    """A queue that is away, or that goes away once workers have been asked for."""

    def __init__(self, *, knows_workers: bool) -> None:
        super().__init__()
        self.knows_workers = knows_workers

    async def submit(self, job: Job, share: float = 1.0, weight: float = 1.0) -> Receipt:
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


LIMITS = QueueLimits(lease_seconds=600.0)
NAMES = "{masc}:waiting:tiny", "{masc}:deadlines", "{masc}:heard", "{masc}:totals"


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
async def client(tmp_path: Path, redis_server: RedisServer) -> AsyncIterator[httpx.AsyncClient]:
    """Of a front end at a Redis whose user may do everything, at first."""
    write_model(tmp_path)
    allow(redis_server, "&*")
    url = redis_server.url.replace("//", "//ann:hush@")
    async with RedisQueue(url, LIMITS) as queue, AsyncExitStack() as stack:
        queue.announce(WorkerStatus("w", True, "tiny", "v1"))
        settings = ServerSettings(models_dir=tmp_path, queue_url=url)
        app = create_app(settings, queue, Registry(tmp_path), CollectorRegistry())
        transport = httpx.ASGITransport(app)
        yield await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://masc")
        )


def allow(server: RedisServer, *rules: str) -> None:
    with server.client() as inside:
        inside.execute_command("ACL", "SETUSER", "ann", "on", ">hush", "~*", "+@all", *rules)


async def until_told(client: httpx.AsyncClient, *, is_up: bool) -> None:
    """Wait until both that machines ask say so; in between they may differ."""
    async with asyncio.timeout(5.0):
        while True:
            ready, text = await client.get("/readyz"), (await client.get("/metrics")).text
            if (ready.status_code, f"masc_queue_up {float(is_up)}" in text) == (
                200 if is_up else 503,
                True,
            ):
                assert f"masc_ready {float(is_up)}" in text
                return
            await asyncio.sleep(0.05)


@pytest.mark.anyio
@pytest.mark.parametrize("rule", ["resetchannels", "-publish", "-zadd", "-evalsha", "resetkeys"])
async def test_a_user_who_loses_a_right_is_no_queue_until_it_is_back(
    rule: str,
    redis_server: RedisServer,
    client: httpx.AsyncClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(2):
        await until_told(client, is_up=True)
        caplog.clear()
        allow(redis_server, rule)
        await until_told(client, is_up=False)
        assert "the queue's Redis refuses stats: " in caplog.text
        assert (await client.post("/generate", json={"class_id": 0})).status_code == 503
        allow(redis_server, "&*")
    await until_told(client, is_up=True)


@pytest.mark.anyio
@pytest.mark.parametrize("name", NAMES)
async def test_a_key_of_another_kind_is_mended_and_told(
    name: str,
    redis_server: RedisServer,
    client: httpx.AsyncClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await until_told(client, is_up=True)
    assert (await client.post("/jobs", json={"class_id": 0})).status_code == 202
    with redis_server.client() as inside:
        inside.delete(name)
        inside.set(name, "what is this")
        await until_told(client, is_up=True)
        assert (await client.post("/jobs", json={"class_id": 0})).status_code == 202
        assert inside.zcard("{masc}:waiting:tiny") == inside.zcard("{masc}:deadlines") == 2
    async with asyncio.timeout(5.0):
        while "masc_unreadable_records_total 1.0" not in (await client.get("/metrics")).text:
            await client.get("/readyz")
    assert "masc_jobs_accepted_total 2.0" in (await client.get("/metrics")).text
    await until(lambda: f"{name} cannot be read" in caplog.text)
