from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import redis

from masc_core.errors import QueueDownError
from tests.redis_server import RedisServer
from tests.stopwatch import Stopwatch
from worker.jobs.queue import QueueLimits
from worker.jobs.redis.client import MAX_TOGETHER, AsyncCaller, settings_of
from worker.jobs.redis.connection import connect_async

pytestmark = pytest.mark.anyio

SETTINGS = settings_of(QueueLimits(), 0)


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[AsyncCaller]:
    client = connect_async(redis_url)
    caller = AsyncCaller(client, SETTINGS, seconds=5.0)
    yield caller
    await caller.close()
    await client.aclose()


async def test_calls_that_meet_travel_together(caller: AsyncCaller, inside: redis.Redis) -> None:
    await caller.run("stats")
    before = inside.info()["total_reads_processed"]
    answers = await asyncio.gather(*(caller.run("status", str(i)) for i in range(MAX_TOGETHER)))
    assert answers == [None] * MAX_TOGETHER
    assert inside.info()["total_reads_processed"] - before < 0.75 * MAX_TOGETHER


async def test_answers_go_to_whoever_asked(caller: AsyncCaller) -> None:
    calls = [caller.run("announce", str(i), str(i)) for i in range(200)]
    await asyncio.gather(*calls)
    first, workers, last = await asyncio.gather(
        caller.run("status", "a"), caller.run("workers"), caller.run("stats")
    )
    assert first is None
    assert sorted(map(int, workers)) == list(range(200))
    assert last[:2] == [0, 0]


async def test_scripts_that_redis_has_forgotten_are_sent_again(
    caller: AsyncCaller, inside: redis.Redis
) -> None:
    for _ in range(2):
        inside.script_flush()
        answers = await asyncio.gather(caller.run("stats"), *map(caller.run, ["stats"] * 5))
        assert [answer[0] for answer in answers] == [0] * 6


async def test_a_faulty_call_fails_alone(caller: AsyncCaller) -> None:
    calls = [caller.run(name) for name in ("submit", "workers")]  # the former needs arguments
    faulty, good = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(faulty, QueueDownError)
    assert good == []


async def test_what_was_given_up_before_it_was_sent_is_not_done(caller: AsyncCaller) -> None:
    calls = [asyncio.create_task(caller.run("announce", str(i), "x")) for i in range(10)]
    await asyncio.sleep(0)
    for call in calls[:5]:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert len(await caller.run("workers")) == 5


async def test_patience_has_an_end() -> None:
    with RedisServer() as server:
        client = connect_async(server.url)
        caller = AsyncCaller(client, SETTINGS, seconds=0.2)
        await caller.run("stats")
        server.hang()
        started = time.monotonic()
        with Stopwatch() as watch, pytest.raises(QueueDownError):
            await caller.run("stats")
        assert time.monotonic() - started >= 0.2
        assert watch.seconds < 1.0
        server.go_on()
        await caller.run("stats")
        await caller.close()
        await client.aclose()


async def test_closing_leaves_nobody_waiting() -> None:
    with RedisServer() as server:
        client = connect_async(server.url)
        caller = AsyncCaller(client, SETTINGS, seconds=60.0)
        await caller.run("stats")
        server.hang()
        calls = [asyncio.create_task(caller.run("stats"))]
        await asyncio.sleep(0.05)
        calls.append(asyncio.create_task(caller.run("stats")))
        await asyncio.sleep(0)
        await caller.close()
        await asyncio.wait(calls, timeout=5.0)
        assert all(call.cancelled() for call in calls)
        await client.aclose()
