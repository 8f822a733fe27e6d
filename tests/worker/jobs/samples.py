from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from worker.jobs.job import GenerationRequest, Job, Lease, NumberedEvent
from worker.jobs.outcome import ImageOutput, JobResult, Timings
from worker.jobs.queue import JobConsumer, JobProducer


def job(num_images: int = 1, cfg_scale: float = 1.0, model: str = "tiny", **fields: object) -> Job:
    request = GenerationRequest(model, 3, cfg_scale, seed=7, num_images=num_images)
    return replace(Job(request), **fields)  # type: ignore[arg-type]


def result(text: str = "image") -> JobResult:
    image = ImageOutput(text.encode(), 7, (1.0, 2.5), 1.75, 0.5)
    return JobResult((image,), "tiny", "v1", "0" * 64, Timings(total=0.5))


async def submit(queue: JobProducer, *jobs: Job) -> None:
    for one in jobs:
        assert (await queue.submit(one)).is_new


def claim(queue: JobConsumer, max_rows: int = 100, model: str = "tiny") -> list[Lease]:
    return list(queue.claim(model, max_rows, timeout=0.0))


def jobs_of(leases: list[Lease]) -> list[Job]:
    return [lease.job for lease in leases]


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that is known without asking; an adapter may hear of it a moment later."""
    async with asyncio.timeout(5.0):
        while not holds():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)


async def collect(queue: JobProducer, job_id: str, after: int = 0) -> list[NumberedEvent]:
    return [event async for event in queue.events(job_id, after)]
