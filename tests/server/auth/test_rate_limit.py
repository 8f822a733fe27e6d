"""Requests that a client may start in a minute; the queue counts them for all front ends."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.clock import Clock
from tests.redis_server import RedisServer
from tests.server.auth.test_api_keys import ALICE, BOB, write_keys
from tests.server.service import Service, assert_problem
from worker.jobs.memory import MemoryQueue
from worker.jobs.queue import JobProducer, QueueLimits
from worker.jobs.redis.queue import RedisQueue

pytestmark = pytest.mark.anyio


async def passed(queue: JobProducer, client: str, limit: int, tries: int) -> int:
    """How many of so many requests are not refused."""
    return [await queue.count_request(client, limit) for _ in range(tries)].count(0)


@pytest.fixture(params=["memory", "redis"])
def queue(request: pytest.FixtureRequest) -> JobProducer:
    if request.param == "memory":
        return MemoryQueue()
    return RedisQueue(request.getfixturevalue("redis_url"), QueueLimits())


async def test_each_client_and_each_limit_has_its_own_count(queue: JobProducer) -> None:
    async with queue:
        assert [await passed(queue, name, 3, 5) for name in ("ann", "ben", "ann")] == [3, 3, 0]
        assert await passed(queue, "ann", 4, 5) == 4
        assert 0 < await queue.count_request("ann", 3) <= 60


async def test_exactly_the_limit_of_many_at_once_pass(queue: JobProducer) -> None:
    async with queue:
        waits = await asyncio.gather(*(queue.count_request("ann", 200) for _ in range(600)))
        assert waits.count(0) == 200


async def test_the_next_window_opens_when_it_was_promised() -> None:
    clock = Clock(100.0)
    queue = MemoryQueue(clock=clock)
    assert await passed(queue, "ann", 3, 3) == 3
    clock.now += 20
    assert await queue.count_request("ann", 3) == 40
    clock.now += 39.9
    assert await passed(queue, "ann", 3, 1) == 0
    clock.now += 0.1
    assert await passed(queue, "ann", 3, 5) == 3


async def test_front_ends_of_one_redis_count_together_and_promise_the_truth(
    redis_url: str, shared_redis: RedisServer
) -> None:
    async with AsyncExitStack() as stack:
        inside = stack.enter_context(shared_redis.client())
        fronts = [
            await stack.enter_async_context(RedisQueue(redis_url, QueueLimits())) for _ in range(2)
        ]
        assert [await passed(fronts[i], "ann", 3, 2) for i in (0, 1, 0)] == [2, 1, 0]
        (name,) = inside.keys("{masc}:limit:*")
        inside.pexpire(name, 1400)
        wait = await fronts[1].count_request("ann", 3)
        assert inside.pttl(name) <= 1000 * wait <= 1400


def test_over_the_limit_the_answer_is_429(tmp_path: Path) -> None:
    with Service(tmp_path, rate_limit=2, **write_keys(tmp_path)) as service:
        calls = [
            service.call("POST", "/generate", json={"class_id": 0}, headers={"X-API-Key": key})
            for key in (ALICE, BOB, ALICE, ALICE, BOB, BOB)
        ]
        assert [response.status_code for response in calls] == [200, 200, 200, 429, 200, 200]
        problem = assert_problem(calls[3], 429)
        assert problem["type"] == "urn:masc:problem:rate-limit"
        assert 1 <= int(calls[3].headers["retry-after"]) <= 61
        assert service.sample("masc_rejections_total", reason="rate_limit") == 1
        labels = {"endpoint": "/generate", "outcome": "rejected"}
        assert service.sample("masc_requests_total", **labels) == 1
        assert len(service.painter.requests) == 5
        assert service.get("/models", **{"X-API-Key": ALICE}).status_code == 200


def test_who_has_no_key_uses_up_nobody_s_limit(tmp_path: Path) -> None:
    with Service(tmp_path, rate_limit=1, **write_keys(tmp_path)) as service:
        assert [service.generate().status_code for _ in range(3)] == [401, 401, 401]
        response = service.call(
            "POST", "/generate", json={"class_id": 0}, headers={"X-API-Key": ALICE}
        )
        assert response.status_code == 200
