"""A worker over a real queue, a real engine and a tiny real bundle, and what it is to make.

The oracle of an image is the plain loop on it alone, the bundle's decoder and the encoder.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from prometheus_client import CollectorRegistry

from masc_core.bundle.read import Bundle
from masc_core.generation.generate import generate
from masc_core.images import encode_image
from worker.engine.engine import Engine
from worker.engine.request import EngineOutput, ImageTask
from worker.job_run import image_params
from worker.jobs.job import GenerationRequest, Job, Lease
from worker.jobs.memory import MemoryQueue
from worker.jobs.outcome import ImageOutput, JobFailure, JobResult, Outcome
from worker.jobs.queue import JobConsumer, QueueLimits, WorkerStatus
from worker.loop import WorkerLoop
from worker.metrics import WorkerMetrics
from worker.model.loaded_version import LoadedVersion
from worker.model.served import ServedModel

REQUEST = GenerationRequest(model="tiny", class_id=2, cfg_scale=3.0, seed=7)


class RecordingEngine(Engine):
    """An engine that remembers the tasks of each step."""

    batches: list[list[ImageTask]]

    def step(self) -> Sequence[EngineOutput]:
        if not hasattr(self, "batches"):
            self.batches = []
        self.batches.append(self.tasks)
        return super().step()


class WatchedQueue(MemoryQueue):
    """A queue at which one can wait for what a worker says of itself; counts renewals."""

    def __init__(self, limits: QueueLimits | None = None) -> None:
        super().__init__(limits)
        self.num_renewals = 0
        self._said = threading.Condition()
        self._statuses: list[WorkerStatus] = []

    def renew(self, leases: Iterable[Lease]) -> None:
        self.num_renewals += bool(tuple(leases))

    def announce(self, status: WorkerStatus) -> None:
        super().announce(status)
        with self._said:
            self._statuses.append(status)
            self._said.notify_all()

    def await_status(self, wanted: Callable[[WorkerStatus], bool]) -> WorkerStatus:
        """The first status of this kind that is announced from now on."""
        with self._said:
            start = len(self._statuses)
            assert self._said.wait_for(lambda: any(map(wanted, self._statuses[start:])), 20)
            return next(filter(wanted, self._statuses[start:]))


def make_loaded(
    bundle: Bundle, capacity: int = 64, engine: type[Engine] = Engine, **options: Any
) -> LoadedVersion:
    return LoadedVersion(
        bundle, engine(bundle.transformer, bundle.code_sampler, capacity), **options
    )


def make_loop(
    bundle: Bundle,
    queue: JobConsumer,
    capacity: int = 64,
    engine: type[Engine] = Engine,
    **options: Any,
) -> WorkerLoop:
    metrics = WorkerMetrics(CollectorRegistry())
    served = ServedModel(bundle.manifest.name, make_loaded(bundle, capacity, engine))
    return WorkerLoop(queue, [served], metrics, "w1", **options)


def engine_of(loop: WorkerLoop) -> RecordingEngine:
    return cast("RecordingEngine", loop._models["tiny"].newest.engine)


@contextmanager
def running(loop: WorkerLoop) -> Iterator[None]:
    """The loop in a thread; it is stopped at the end, and must come to one."""
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield
    finally:
        loop.stop()
        thread.join(60)
        assert not thread.is_alive()


async def submit(queue: MemoryQueue, requests: Sequence[GenerationRequest]) -> list[str]:
    jobs = [Job(request) for request in requests]
    for job in jobs:
        await queue.submit(job)
    return [job.id for job in jobs]


async def outcomes(queue: MemoryQueue, job_ids: Sequence[str]) -> list[Outcome]:
    return list(await asyncio.gather(*(queue.outcome(job_id) for job_id in job_ids)))


def images(outcome: Outcome) -> tuple[ImageOutput, ...]:
    assert isinstance(outcome, JobResult), outcome
    return outcome.images


def failure(outcome: Outcome) -> JobFailure:
    assert isinstance(outcome, JobFailure), outcome
    return outcome


def expected(bundle: Bundle, request: GenerationRequest) -> list[bytes]:
    files = []
    for index in range(request.num_images):
        params = image_params(request, index)
        made = generate(bundle.transformer, bundle.code_sampler, [params])
        description = bundle.manifest.describe_image(params)
        files.append(encode_image(bundle.render(made.codes)[0], request.format, description))
    return files
