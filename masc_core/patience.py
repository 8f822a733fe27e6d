"""How long another process may take to answer, when this one may stand still meanwhile.

An event loop that was held up finds an answer and the end of the time at once, and then
`asyncio.timeout` lets the end win: whoever answered in time would pass for dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

LAST_PART = 0.2  # of the time; it begins when the loop has seen the rest go by


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """Let the body take so many seconds, and what it already has an answer to a little longer.

    A loop that is not held up ends the body on time. After a hold-up the last part is still to
    come, in which the answers that arrived are read.

    Raises
    ------
    TimeoutError : the body has not ended by then
    """
    loop = asyncio.get_running_loop()
    last = seconds * LAST_PART
    async with asyncio.timeout(None) as limit:
        timer = loop.call_later(seconds - last, lambda: limit.reschedule(loop.time() + last))
        try:
            yield
        finally:
            timer.cancel()
