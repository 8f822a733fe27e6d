"""A time-out that a held-up event loop does not spend.

After a hold-up a loop finds the answer and the time-out at once, and `asyncio.timeout` lets the
time-out win: a server that answered in time would count as away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

PARTS = 10  # of the time; one begins when the loop has seen those before go by


@asynccontextmanager
async def loop_timeout(seconds: float) -> AsyncIterator[None]:
    """Let the body take so many seconds in which the loop runs.

    A hold-up, however long, counts as the part of the time in which it happened, or two. After one
    in the last part none is left, as with `asyncio.timeout`.

    Raises
    ------
    TimeoutError : the body has not ended by then
    """
    loop = asyncio.get_running_loop()
    part = seconds / PARTS
    timer: asyncio.TimerHandle

    def go_by(due: float, num_left: int) -> None:
        nonlocal timer
        due += part
        if due <= loop.time():  # held up for all of the next part, too
            due = loop.time() + part
        if num_left > 1:
            timer = loop.call_at(due, go_by, due, num_left - 1)
        else:
            limit.reschedule(due)

    async with asyncio.timeout(None) as limit:
        go_by(loop.time(), PARTS)
        try:
            yield
        finally:
            timer.cancel()
