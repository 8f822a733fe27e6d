from __future__ import annotations

import asyncio
import threading
import time

import pytest

from worker.jobs.redis.client import loop_timeout

pytestmark = pytest.mark.anyio

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


@pytest.mark.parametrize("held", [0.3, 0.5, 1.0])
async def test_an_answer_that_came_during_a_hold_up_is_one(held: float) -> None:
    obstacle = asyncio.create_task(hold_up(held))
    async with loop_timeout(SECONDS):
        await answer_at(0.01)
    await obstacle


@pytest.mark.parametrize(("start", "times"), [(0.0, 4), (0.2, 2), (0.26, 1)])
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
    for _ in range(5):
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
