from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import pytest
import redis

from masc_core.errors import QueueDownError
from tests.redis_server import RedisServer
from tests.stopwatch import Stopwatch
from worker.jobs.queue import QueueLimits
from worker.jobs.redis.client import (
    MAX_TOGETHER,
    AsyncScriptRunner,
    QueueNamespace,
    end_task,
    loop_timeout,
)
from worker.jobs.redis.connection import connect_async

pytestmark = pytest.mark.anyio

NAMESPACE = QueueNamespace.of(QueueLimits(), 0)


@pytest.fixture
async def caller(redis_url: str) -> AsyncIterator[AsyncScriptRunner]:
    client = connect_async(redis_url)
    caller = AsyncScriptRunner(client, NAMESPACE, seconds=5.0)
    yield caller
    await caller.close()
    await client.aclose()


async def test_calls_that_meet_travel_together(
    caller: AsyncScriptRunner, inside: redis.Redis
) -> None:
    await caller.run("stats")
    before = inside.info()["total_reads_processed"]
    answers = await asyncio.gather(*(caller.run("status", str(i)) for i in range(MAX_TOGETHER)))
    assert answers == [None] * MAX_TOGETHER
    assert inside.info()["total_reads_processed"] - before < 0.75 * MAX_TOGETHER


async def test_answers_go_to_whoever_asked(caller: AsyncScriptRunner) -> None:
    calls = [caller.run("announce", str(i), str(i)) for i in range(200)]
    await asyncio.gather(*calls)
    first, workers, last = await asyncio.gather(
        caller.run("status", "a"), caller.run("workers"), caller.run("stats")
    )
    assert first is None
    assert sorted(map(int, workers[1::2])) == list(range(200))
    assert last[:2] == [0, 0]


async def test_scripts_that_redis_has_forgotten_are_sent_again(
    caller: AsyncScriptRunner, inside: redis.Redis
) -> None:
    for _ in range(2):
        inside.script_flush()
        answers = await asyncio.gather(caller.run("stats"), *map(caller.run, ["stats"] * 5))
        assert [answer[0] for answer in answers] == [0] * 6


async def test_a_faulty_call_fails_alone(caller: AsyncScriptRunner) -> None:
    calls = [caller.run(name) for name in ("submit", "workers")]  # the former needs arguments
    faulty, good = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(faulty, QueueDownError)
    assert good == []


async def test_what_was_given_up_before_it_was_sent_is_not_done(caller: AsyncScriptRunner) -> None:
    calls = [asyncio.create_task(caller.run("announce", str(i), "x")) for i in range(10)]
    await asyncio.sleep(0)
    for call in calls[:5]:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert sorted((await caller.run("workers"))[::2]) == [b"5", b"6", b"7", b"8", b"9"]


async def test_patience_has_an_end() -> None:
    with RedisServer() as server:
        client = connect_async(server.url)
        caller = AsyncScriptRunner(client, NAMESPACE, seconds=0.2)
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
        caller = AsyncScriptRunner(client, NAMESPACE, seconds=60.0)
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


async def test_a_task_ends_even_if_a_cancellation_is_lost() -> None:
    lost = 0

    async def stubborn() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(60.0)
            except asyncio.CancelledError:
                lost += 1
                if lost > 2:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await asyncio.wait_for(end_task(task), 5.0)
    assert task.cancelled()
    assert lost == 3


async def test_no_task_has_ended_already() -> None:
    await end_task(None)


SECONDS = 0.4
HOPS = 20  # turns of the loop, from a first answer to what is made of it


async def hold_up(seconds: float) -> None:
    """Keep the loop from everything else, as a process without a processor does."""
    await asyncio.sleep(0)
    time.sleep(seconds)  # noqa: ASYNC251 - that is what it is for


async def answer_at(seconds: float) -> None:
    """Return some turns after a thread says so, which goes on while the loop is held up."""
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    timer = threading.Timer(seconds, loop.call_soon_threadsafe, [arrived.set])
    timer.start()
    try:
        await arrived.wait()
        for _ in range(HOPS):
            await asyncio.sleep(0)
    finally:
        timer.cancel()


@pytest.mark.parametrize("held", [0.5, 1.0])
async def test_an_answer_that_came_during_a_hold_up_is_one(held: float) -> None:
    obstacle = asyncio.create_task(hold_up(held))
    async with loop_timeout(SECONDS):
        await answer_at(0.01)
    await obstacle


@pytest.mark.parametrize(("start", "times"), [(0.0, 4), (0.26, 1)])
async def test_answers_are_read_although_the_loop_is_held_up_again_and_again(
    start: float, times: int
) -> None:
    async def hold_up_often() -> None:
        await asyncio.sleep(start)
        for _ in range(times):
            await hold_up(0.19)

    obstacle = asyncio.create_task(hold_up_often())
    async with loop_timeout(SECONDS):
        await asyncio.sleep(start)
        for _ in range(times):
            await answer_at(0.005)
    await obstacle


async def test_no_answer_ends_it_on_time() -> None:
    times = []
    for _ in range(3):
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            async with loop_timeout(SECONDS):
                await asyncio.Event().wait()
        times.append(time.monotonic() - started)
    assert SECONDS - 0.001 <= min(times) < 1.1 * SECONDS  # the machine was busy in the others


async def test_no_answer_ends_it_after_a_hold_up_too() -> None:
    obstacle = asyncio.create_task(hold_up(1.0))
    with pytest.raises(TimeoutError):
        async with loop_timeout(SECONDS):
            await asyncio.Event().wait()
    await obstacle


async def test_what_ends_in_time_is_left_alone_afterwards() -> None:
    async with loop_timeout(0.02):
        await asyncio.sleep(0)
    await asyncio.sleep(0.1)


async def test_a_cancellation_from_outside_is_one() -> None:
    async def wait() -> None:
        async with loop_timeout(60.0):
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
