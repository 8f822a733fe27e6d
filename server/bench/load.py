"""The two load loops: open, which never waits for the server, and closed, which does.

Samples go into a `Record` as they complete, so that a run can be interrupted.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass

from server.bench.plan import Plan
from server.bench.record import Record
from server.bench.sample import NO_ANSWER, Clock, Target

# Seconds that a closed loop's client waits after no answer: a server that is gone would otherwise
# be asked thousands of times a second.
PAUSE = 0.1


@dataclass(frozen=True, slots=True)
class Load:
    """One run against one target.

    Attributes
    ----------
    rate : mean arrivals a second, if the loop is open
    clients : clients that ask in turn, if it is closed
    """

    plan: Plan
    target: Target
    record: Record
    rate: float | None = None
    clients: int = 1

    async def run(self) -> None:
        """Send all requests and wait for all answers."""
        clock = _clock_from(self.plan.options.warm_up)
        try:
            if self.rate is not None:
                await self._open(self.plan.schedule(self.rate), clock)
            else:
                await self._closed(clock)
        finally:
            self.record.ended = clock()

    async def _open(self, schedule: Iterable[tuple[float, bytes]], clock: Clock) -> None:
        async with asyncio.TaskGroup() as group:
            for due, body in schedule:
                await asyncio.sleep(max(0.0, due - clock()))  # when late, others have their turn
                group.create_task(self._send(body, due, clock))

    async def _closed(self, clock: Clock) -> None:
        warm_up, measured = self.plan.bodies("warm-up"), self.plan.bodies("measured")
        duration = self.plan.options.duration
        end = math.inf if duration is None else duration

        async def ask_in_turn() -> None:
            while (due := clock()) < end:
                body = next(warm_up if due < 0 else measured, None)
                if body is None:
                    return
                if await self._send(body, due, clock) == NO_ANSWER:
                    await asyncio.sleep(PAUSE)

        async with asyncio.TaskGroup() as group:
            for _ in range(self.clients):
                group.create_task(ask_in_turn())

    async def _send(self, body: bytes, due: float, clock: Clock) -> int:
        self.record.sent += due >= 0
        sample = await self.target.measure(body, due, clock)
        self.record.add(sample)
        return sample.status


def _clock_from(warm_up: float) -> Clock:
    time = asyncio.get_running_loop().time
    origin = time() + warm_up
    return lambda: time() - origin
