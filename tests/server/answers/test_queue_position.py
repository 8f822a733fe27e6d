from __future__ import annotations

import asyncio

import pytest

from server.answers.queue_position import QueuePosition, queue_position, start_seconds
from tests.clock import Clock
from worker.jobs.job import GenerationRequest, Job
from worker.jobs.memory import MemoryQueue
from worker.jobs.outcome import JobFailure


@pytest.mark.parametrize(
    ("position", "rate", "seconds"),
    [(0, 0.0, None), (0, 4.0, 0.25), (3, 4.0, 1.0), (6, 3.0, 2.333)],
)
def test_start_seconds(position: int, rate: float, seconds: float | None) -> None:
    assert start_seconds(position, rate) == seconds


def test_a_place_is_for_those_who_wait() -> None:
    clock = Clock()
    queue = MemoryQueue(clock=clock)
    jobs = [Job(GenerationRequest("tiny", 0, 1.0, i)) for i in range(4)]

    async def places() -> list[QueuePosition | None]:
        return [await queue_position(queue, await queue.status(job.id)) for job in jobs]

    async def run() -> None:
        for job in jobs:
            await queue.submit(job)
        assert await places() == [QueuePosition(i, None) for i in range(4)]
        first, second = queue.claim("tiny", 2, 0.0)
        clock.now = 5.0
        queue.finish(first, JobFailure("EngineError", "none"))
        assert await places() == [None, None, QueuePosition(0, 5.0), QueuePosition(1, 10.0)]
        queue.hand_back([second])
        assert (await places())[1:] == [
            QueuePosition(0, 5.0),
            QueuePosition(1, 10.0),
            QueuePosition(2, 15.0),
        ]

    asyncio.run(run())
