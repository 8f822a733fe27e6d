"""What every adapter of the queue port must do, run over each of them.

Both faces are used as in the product: the front end's from coroutines, the worker's from a thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from masc_core.errors import QueueFullError
from worker.jobs.job import (
    GenerationRequest,
    ImageOutput,
    Job,
    JobFailure,
    JobResult,
    Outcome,
    Timings,
    WorkerStatus,
)
from worker.jobs.memory import MemoryQueue
from worker.jobs.queue import JobQueue

MakeQueue = Callable[[int], JobQueue]

ADAPTERS: dict[str, MakeQueue] = {"memory": MemoryQueue}


@pytest.fixture(params=ADAPTERS)
def make_queue(request: pytest.FixtureRequest) -> MakeQueue:
    return ADAPTERS[request.param]


@pytest.fixture
def queue(make_queue: MakeQueue) -> JobQueue:
    return make_queue(100)


def job(num_images: int = 1, cfg_scale: float = 1.0) -> Job:
    return Job(GenerationRequest("tiny", 3, cfg_scale, seed=7, num_images=num_images))


def result(text: str = "image") -> JobResult:
    image = ImageOutput(text.encode(), 7, (1.0, 2.5), 1.75, 0.5)
    return JobResult((image,), "tiny", "v1", "0" * 64, Timings(total=0.5))


def submit(queue: JobQueue, *jobs: Job) -> None:
    async def run() -> None:
        for one in jobs:
            await queue.submit(one)

    asyncio.run(run())


def claim_all(queue: JobQueue, max_rows: int) -> list[Job]:
    return list(queue.claim(max_rows, timeout=0.0))


def test_a_job_arrives_as_it_was_sent(queue: JobQueue) -> None:
    sent = Job(
        GenerationRequest("tiny", 3, 2.5, 2**63 - 1, 2, 0.7, 5, 0.9, "frequency", "webp", "v1"),
    )
    submit(queue, sent)
    assert claim_all(queue, 4) == [sent]
    assert claim_all(queue, 4) == []


@pytest.mark.parametrize(
    "outcome", [result(), JobFailure("UnknownClassError", "no class 9", "class_id")]
)
def test_the_outcome_comes_back_once(queue: JobQueue, outcome: Outcome) -> None:
    async def run() -> None:
        sent = job()
        await queue.submit(sent)
        await asyncio.to_thread(queue.claim, 1, 1.0)
        await asyncio.to_thread(queue.finish, sent.id, outcome)
        assert await queue.outcome(sent.id) == outcome
        with pytest.raises(KeyError):
            await queue.outcome(sent.id)

    asyncio.run(run())


def test_the_outcome_of_an_unknown_job_is_an_error(queue: JobQueue) -> None:
    with pytest.raises(KeyError):
        asyncio.run(queue.outcome("nobody"))


def test_a_wait_begun_before_the_end_is_woken(queue: JobQueue) -> None:
    def work() -> None:
        for claimed in queue.claim(8, timeout=5.0):
            time.sleep(0.02)
            queue.finish(claimed.id, result(claimed.id))

    async def run() -> None:
        sent = job()
        worker = threading.Thread(target=work)
        worker.start()
        await queue.submit(sent)
        assert await asyncio.wait_for(queue.outcome(sent.id), 5.0) == result(sent.id)
        worker.join()

    asyncio.run(run())


def test_a_cancelled_wait_can_be_taken_up_again(queue: JobQueue) -> None:
    async def run() -> None:
        sent = job()
        await queue.submit(sent)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.outcome(sent.id), 0.01)
        queue.claim(1, 0.0)
        queue.finish(sent.id, result())
        assert await queue.outcome(sent.id) == result()

    asyncio.run(run())


def test_only_the_first_report_of_a_job_counts(queue: JobQueue) -> None:
    async def run() -> None:
        sent = job()
        await queue.submit(sent)
        queue.claim(1, 0.0)
        queue.finish(sent.id, result("first"))
        queue.finish(sent.id, result("second"))
        assert await queue.outcome(sent.id) == result("first")
        queue.finish(sent.id, result("third"))

    asyncio.run(run())


def test_jobs_are_claimed_in_the_order_of_submission(queue: JobQueue) -> None:
    jobs = [job() for _ in range(5)]
    submit(queue, *jobs)
    assert claim_all(queue, 2) == jobs[:2]
    assert claim_all(queue, 100) == jobs[2:]


def test_a_claim_takes_what_fits(queue: JobQueue) -> None:
    jobs = [job(1), job(2, cfg_scale=3.0), job(1)]  # 1, 4 and 1 rows
    submit(queue, *jobs)
    assert claim_all(queue, 5) == jobs[:2]
    assert claim_all(queue, 5) == jobs[2:]


def test_no_job_is_overtaken(queue: JobQueue) -> None:
    jobs = [job(1), job(4), job(1)]
    submit(queue, *jobs)
    assert claim_all(queue, 4) == jobs[:1]
    assert claim_all(queue, 4) == jobs[1:2]
    assert claim_all(queue, 4) == jobs[2:]


def test_a_job_larger_than_the_worker_does_not_block(queue: JobQueue) -> None:
    jobs = [job(16, cfg_scale=2.0), job(1)]
    submit(queue, *jobs)
    assert claim_all(queue, 1) == jobs[:1]
    assert claim_all(queue, 1) == jobs[1:]


@pytest.mark.parametrize("max_rows", [0, -1])
def test_without_a_free_row_nothing_is_claimed_at_once(queue: JobQueue, max_rows: int) -> None:
    submit(queue, job())
    started = time.monotonic()
    assert list(queue.claim(max_rows, timeout=5.0)) == []
    assert time.monotonic() - started < 1.0
    assert len(claim_all(queue, 1)) == 1


def test_an_empty_claim_waits_as_long_as_it_was_told(queue: JobQueue) -> None:
    started = time.monotonic()
    assert list(queue.claim(1, timeout=0.1)) == []
    assert 0.09 <= time.monotonic() - started < 2.0


def test_concurrent_claims_share_the_jobs(queue: JobQueue) -> None:
    jobs = [job() for _ in range(60)]
    claimed: list[str] = []

    def work() -> None:
        while taken := queue.claim(3, timeout=0.2):
            claimed.extend(one.id for one in taken)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    submit(queue, *jobs)
    for worker in workers:
        worker.join()
    assert sorted(claimed) == sorted(one.id for one in jobs)


def test_a_full_queue_says_when_to_come_back(make_queue: MakeQueue) -> None:
    queue = make_queue(2)
    jobs = [job(), job(), job()]
    submit(queue, *jobs[:2])
    with pytest.raises(QueueFullError) as refusal:
        submit(queue, jobs[2])
    assert refusal.value.retry_after >= 1.0
    assert claim_all(queue, 1) == jobs[:1]
    submit(queue, jobs[2])  # the claimed one does not count
    assert claim_all(queue, 10) == jobs[1:]


def test_a_cancelled_job_that_waits_is_never_claimed(queue: JobQueue) -> None:
    jobs = [job(), job()]
    submit(queue, *jobs)
    asyncio.run(queue.cancel(jobs[0].id))
    assert claim_all(queue, 10) == jobs[1:]


def test_the_outcome_of_a_cancelled_job_that_runs_is_discarded(queue: JobQueue) -> None:
    async def run() -> None:
        sent = job()
        await queue.submit(sent)
        queue.claim(1, 0.0)
        await queue.cancel(sent.id)
        queue.finish(sent.id, result())
        with pytest.raises(KeyError):
            await queue.outcome(sent.id)

    asyncio.run(run())


def test_a_worker_is_told_which_of_its_jobs_nobody_waits_for(queue: JobQueue) -> None:
    jobs = [job() for _ in range(3)]
    ids = [one.id for one in jobs]
    submit(queue, *jobs)
    assert claim_all(queue, 10) == jobs
    assert queue.abandoned(ids) == set()
    asyncio.run(queue.cancel(ids[1]))
    assert queue.abandoned(iter(ids)) == {ids[1]}
    assert queue.abandoned(ids[2:]) == set()
    queue.finish(ids[0], result())
    assert asyncio.run(queue.outcome(ids[0])) == result()
    assert queue.abandoned(ids) == set(ids[:2])
    assert queue.abandoned([]) == set()


def test_cancelling_wakes_who_waits(queue: JobQueue) -> None:
    async def run() -> None:
        sent = job()
        await queue.submit(sent)
        waiting = asyncio.ensure_future(queue.outcome(sent.id))
        await asyncio.sleep(0.01)
        await queue.cancel(sent.id)
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(run())


def test_cancelling_what_is_over_or_unknown_does_nothing(queue: JobQueue) -> None:
    async def run() -> None:
        sent = job()
        await queue.submit(sent)
        queue.claim(1, 0.0)
        queue.finish(sent.id, result())
        assert await queue.outcome(sent.id) == result()
        await queue.cancel(sent.id)
        await queue.cancel("nobody")

    asyncio.run(run())


def test_the_state_of_the_queue(queue: JobQueue) -> None:
    empty = asyncio.run(queue.stats())
    assert (empty.depth, empty.oldest_age, empty.drain_rate) == (0, 0.0, 0.0)
    old = Job(job().request, submitted_at=time.time() - 60)
    submit(queue, old, job())
    waiting = asyncio.run(queue.stats())
    assert waiting.depth == 2
    assert 60 <= waiting.oldest_age < 65
    queue.claim(1, 0.0)
    queue.finish(old.id, result())
    later = asyncio.run(queue.stats())
    assert later.depth == 1
    assert later.oldest_age < 5
    assert later.drain_rate > 0


def test_workers_come_change_and_go(queue: JobQueue) -> None:
    warming = WorkerStatus("a", ready=False, detail="warming up")
    ready = WorkerStatus("a", ready=True, model="tiny", version="v1")
    other = WorkerStatus("b", ready=True, model="tiny", version="v2")
    assert list(asyncio.run(queue.workers())) == []
    queue.announce(warming)
    assert list(asyncio.run(queue.workers())) == [warming]
    queue.announce(ready)
    queue.announce(other)
    assert sorted(asyncio.run(queue.workers()), key=lambda w: w.worker_id) == [ready, other]
    queue.leave("a")
    queue.leave("nobody")
    assert list(asyncio.run(queue.workers())) == [other]
