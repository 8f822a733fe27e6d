"""The end of a task, however often it takes."""

from __future__ import annotations

import asyncio

RETRY_SECONDS = 0.1


async def end_task(task: asyncio.Task[None] | None) -> None:
    """Cancel a task and wait for its end.

    One cancellation can be lost: `asyncio.wait_for`, which the client library uses, swallows it
    before Python 3.12 when what it waits for is done at the same moment.
    """
    while task is not None and not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=RETRY_SECONDS)
