from __future__ import annotations

import asyncio

import pytest

from worker.jobs.redis.client import end_task

pytestmark = pytest.mark.anyio


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
