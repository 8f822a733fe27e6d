"""Two front ends that share a queue: what one has accepted, the other one tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from masc_core.bundle.registry import Registry
from server.app import create_app
from server.settings import ServerSettings
from tests.server.asgi import until
from tests.server.service import GRID, Painter, draw, write_model
from tests.server.sse import Event, read_events
from worker.jobs.queue import QueueLimits, WorkerStatus
from worker.jobs.redis.queue import RedisQueue

pytestmark = pytest.mark.anyio

LIMITS = QueueLimits()
FrontEnds = tuple[httpx.AsyncClient, httpx.AsyncClient]


@pytest.fixture
def painter(redis_url: str) -> Iterator[Painter]:
    with closing(RedisQueue(redis_url, LIMITS)) as queue:
        queue.announce(WorkerStatus("painter", True, "tiny", "v1"))
        painter = Painter(queue, ["tiny"])
        painter.start()
        yield painter
        painter.stop()


@pytest.fixture
async def front_ends(tmp_path: Path, redis_url: str, painter: Painter) -> AsyncIterator[FrontEnds]:
    write_model(tmp_path)
    settings = ServerSettings(models_dir=tmp_path, queue_url=redis_url)
    async with AsyncExitStack() as stack:
        clients = []
        for _ in range(2):
            queue = await stack.enter_async_context(RedisQueue(redis_url, LIMITS))
            app = create_app(settings, queue, Registry(tmp_path), CollectorRegistry())
            transport = httpx.ASGITransport(app)
            client = httpx.AsyncClient(transport=transport, base_url="http://masc")
            clients.append(await stack.enter_async_context(client))
        yield clients[0], clients[1]


async def told(client: httpx.AsyncClient, location: str, behind: str = "") -> list[Event]:
    answer = await client.get(f"{location}/events", headers={"Last-Event-ID": behind})
    assert answer.status_code == 200
    return read_events(answer.text)


async def test_a_stream_goes_on_at_the_other_front_end(front_ends: FrontEnds) -> None:
    one, other = front_ends
    accepted = await one.post("/jobs", json={"class_id": 2, "seed": 7, "num_images": 2})
    location = accepted.headers["location"]
    events = [event for event in await told(one, location) if event.id]
    assert [event.name for event in events[-3:]] == ["image", "image", "done"]
    assert len(events) == 1 + 2 * 2 * GRID + 3
    for i, event in enumerate(events[:-1], 1):
        assert event.id is not None
        assert await told(other, location, event.id) == events[i:]
    assert (await other.get(location)).json()["state"] == "ok"
    assert (await other.get(f"{location}/images/1")).content == draw(2, 8, "png")


async def test_a_job_can_be_cancelled_at_the_other_front_end(
    front_ends: FrontEnds, painter: Painter
) -> None:
    one, other = front_ends
    painter.gate.clear()
    location = (await one.post("/jobs", json={"class_id": 2})).headers["location"]
    stream = asyncio.ensure_future(told(one, location))
    await until(lambda: bool(painter.requests))
    assert (await other.delete(location)).status_code == 204
    last = (await asyncio.wait_for(stream, 5.0))[-1]
    assert (last.name, last.data["status"]) == ("error", 410)


async def insist(front_end: httpx.AsyncClient) -> httpx.Response:
    """Ask again while the queue is too busy to answer in time, which the key makes safe."""
    headers = {"Idempotency-Key": "order-7"}
    async with asyncio.timeout(30.0):
        while True:
            answer = await front_end.post("/generate", json={"class_id": 1}, headers=headers)
            if answer.status_code != 503:
                return answer
            assert "retry-after" in answer.headers


async def test_fifty_with_one_key_at_both_are_one_execution(
    front_ends: FrontEnds, painter: Painter
) -> None:
    answers = await asyncio.gather(*(insist(front_ends[i % 2]) for i in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len(painter.requests) == 1


async def test_the_queue_s_figures_are_the_same_at_both(front_ends: FrontEnds) -> None:
    for front_end in front_ends:
        assert (await front_end.post("/generate", json={"class_id": 1})).status_code == 200
    for front_end in front_ends:
        text = (await front_end.get("/metrics")).text
        assert "masc_jobs_accepted_total 2.0" in text
        assert 'masc_jobs_ended_total{outcome="ok"} 2.0' in text
