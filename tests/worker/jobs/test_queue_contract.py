"""What every adapter of the queue port must do, run over each of them.

Both faces are used as in the product: the front end's from coroutines, the worker's from a thread
where it waits.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable

import pytest

from masc_core.errors import (
    IdempotencyConflictError,
    QueueFullError,
    ResultGoneError,
    ShareExceededError,
    UnknownJobError,
)
from tests.worker.jobs.samples import claim, collect, job, jobs_of, result, submit, until
from worker.jobs.job import (
    Event,
    GenerationRequest,
    Idempotency,
    Job,
    NumberedEvent,
    Preview,
    Progress,
    Started,
)
from worker.jobs.outcome import CANCELLED, EXPIRED, JobFailure, Outcome
from worker.jobs.queue import (
    DEFAULT_RETRY_AFTER,
    REQUEUE,
    JobQueue,
    QueueLimits,
    Totals,
    WorkerStatus,
)

pytestmark = pytest.mark.anyio

LIMITS = QueueLimits(max_jobs=100)


@pytest.fixture
async def queue(make_queue: Callable[[QueueLimits], JobQueue]) -> AsyncIterator[JobQueue]:
    async with make_queue(LIMITS) as queue:
        yield queue


async def test_a_job_arrives_as_it_was_sent(queue: JobQueue) -> None:
    request = GenerationRequest(
        model="tiny",
        class_id=3,
        cfg_scale=2.5,
        seed=2**63 - 1,
        num_images=2,
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        decoding="frequency",
        format="webp",
        version="v1",
        class_name="großer Hai",
    )
    sent = Job(request, "an-id", 12.5, 60.0, "alice", True, True, Idempotency("key", "print"))
    await submit(queue, sent)
    (lease,) = claim(queue, 4)
    assert lease.job == sent
    assert 0 < lease.seconds_left <= 60.0
    assert claim(queue, 4) == []


@pytest.mark.parametrize(
    "outcome", [result(), JobFailure("UnknownClassError", "no class 9", "class_id")]
)
async def test_the_outcome_comes_back_to_whoever_asks(queue: JobQueue, outcome: Outcome) -> None:
    sent = job()
    await submit(queue, sent)
    waiting = [asyncio.create_task(queue.outcome(sent.id)) for _ in range(3)]
    (lease,) = claim(queue)
    assert queue.report([(lease, outcome)]) == [True]
    assert await asyncio.gather(*waiting) == [outcome] * 3
    assert await queue.outcome(sent.id) == outcome
    await queue.forget(sent.id)
    with pytest.raises(UnknownJobError):
        await queue.outcome(sent.id)


async def test_what_is_to_be_kept_is_not_forgotten(queue: JobQueue) -> None:
    sent = job(keep=True)
    await submit(queue, sent)
    (lease,) = claim(queue)
    queue.report([(lease, result())])
    await queue.forget(sent.id)
    assert await queue.outcome(sent.id) == result()


async def test_forgetting_what_runs_or_is_unknown_does_nothing(queue: JobQueue) -> None:
    sent = job()
    await submit(queue, sent)
    await queue.forget(sent.id)
    await queue.forget("nobody")
    (lease,) = claim(queue)
    queue.report([(lease, result())])
    assert await queue.outcome(sent.id) == result()


async def test_an_unknown_job_is_an_error(queue: JobQueue) -> None:
    with pytest.raises(UnknownJobError):
        await queue.outcome("nobody")
    with pytest.raises(UnknownJobError):
        await queue.status("nobody")
    with pytest.raises(UnknownJobError):
        await collect(queue, "nobody")


async def test_a_kept_outcome_goes_after_its_time(
    make_queue: Callable[[QueueLimits], JobQueue],
) -> None:
    limits = QueueLimits(result_seconds=0.5, tombstone_seconds=2.0)
    async with make_queue(limits) as queue:
        sent = job(keep=True)
        await submit(queue, sent)
        (lease,) = claim(queue)
        queue.report([(lease, result())])
        assert await queue.outcome(sent.id) == result()
        async with asyncio.timeout(5.0):
            with pytest.raises(ResultGoneError):  # noqa: PT012 - until it is
                while True:
                    assert await queue.outcome(sent.id) == result()
                    await asyncio.sleep(0.02)
        with pytest.raises(ResultGoneError):
            await collect(queue, sent.id)
        assert (await queue.status(sent.id)).state == "ok"
        async with asyncio.timeout(5.0):
            with pytest.raises(UnknownJobError):  # noqa: PT012 - until it is
                while True:
                    await queue.status(sent.id)
                    await asyncio.sleep(0.02)


async def test_a_cancelled_wait_can_be_taken_up_again(queue: JobQueue) -> None:
    sent = job()
    await submit(queue, sent)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.outcome(sent.id), 0.01)
    (lease,) = claim(queue)
    queue.report([(lease, result())])
    assert await queue.outcome(sent.id) == result()


async def test_only_the_first_report_of_a_job_counts(queue: JobQueue) -> None:
    sent = job()
    await submit(queue, sent)
    (lease,) = claim(queue)
    assert queue.report([(lease, result("first"))]) == [True]
    assert queue.report([(lease, result("second"))]) == [False]
    assert await queue.outcome(sent.id) == result("first")
    assert (await queue.stats()).totals.fenced == 1


async def test_jobs_are_claimed_in_the_order_of_submission(queue: JobQueue) -> None:
    jobs = [job() for _ in range(5)]
    await submit(queue, *jobs)
    assert jobs_of(claim(queue, 2)) == jobs[:2]
    assert jobs_of(claim(queue)) == jobs[2:]


async def test_a_claim_takes_what_fits(queue: JobQueue) -> None:
    jobs = [job(1), job(2, cfg_scale=3.0), job(1)]  # 1, 4 and 1 rows
    await submit(queue, *jobs)
    assert jobs_of(claim(queue, 5)) == jobs[:2]
    assert jobs_of(claim(queue, 5)) == jobs[2:]


async def test_no_job_is_overtaken(queue: JobQueue) -> None:
    jobs = [job(1), job(4), job(1)]
    await submit(queue, *jobs)
    assert jobs_of(claim(queue, 4)) == jobs[:1]
    assert jobs_of(claim(queue, 4)) == jobs[1:2]
    assert jobs_of(claim(queue, 4)) == jobs[2:]


async def test_a_job_larger_than_the_worker_does_not_block(queue: JobQueue) -> None:
    jobs = [job(16, cfg_scale=2.0), job(1)]
    await submit(queue, *jobs)
    assert jobs_of(claim(queue, 1)) == jobs[:1]
    assert jobs_of(claim(queue, 1)) == jobs[1:]


async def test_a_worker_gets_the_jobs_of_its_model(queue: JobQueue) -> None:
    jobs = [job(model="a"), job(model="b"), job(model="a")]
    await submit(queue, *jobs)
    assert [(await queue.status(one.id)).position for one in jobs] == [0, 0, 1]
    assert jobs_of(claim(queue, model="b")) == [jobs[1]]
    assert claim(queue, model="b") == []
    assert jobs_of(claim(queue, model="a")) == [jobs[0], jobs[2]]


@pytest.mark.parametrize("max_rows", [0, -1])
async def test_without_a_free_row_nothing_is_claimed_at_once(
    queue: JobQueue, max_rows: int
) -> None:
    await submit(queue, job())
    started = time.monotonic()
    assert list(queue.claim("tiny", max_rows, timeout=5.0)) == []
    assert time.monotonic() - started < 1.0
    assert len(claim(queue, 1)) == 1


async def test_an_empty_claim_waits_as_long_as_it_was_told(queue: JobQueue) -> None:
    started = time.monotonic()
    assert list(queue.claim("tiny", 1, timeout=0.1)) == []
    assert 0.09 <= time.monotonic() - started < 2.0


async def test_a_claim_that_waits_gets_what_comes(queue: JobQueue) -> None:
    sent = job()
    claiming = asyncio.create_task(asyncio.to_thread(queue.claim, "tiny", 8, 30.0))
    await asyncio.sleep(0.05)
    started = time.monotonic()
    await submit(queue, sent)
    (lease,) = await claiming
    assert lease.job == sent
    assert time.monotonic() - started < 5.0


async def test_a_claim_that_waits_gets_what_is_given_back(queue: JobQueue) -> None:
    sent = job()
    await submit(queue, sent)
    leases = claim(queue)
    claiming = asyncio.create_task(asyncio.to_thread(queue.claim, "tiny", 8, 30.0))
    await asyncio.sleep(0.05)
    started = time.monotonic()
    await asyncio.to_thread(queue.report, [(lease, REQUEUE) for lease in leases])
    assert jobs_of(list(await claiming)) == [sent]
    assert time.monotonic() - started < 5.0


async def test_concurrent_claims_share_the_jobs(queue: JobQueue) -> None:
    jobs = [job() for _ in range(60)]
    claimed: list[str] = []

    def work() -> None:
        while taken := queue.claim("tiny", 3, timeout=0.5):
            claimed.extend(lease.job_id for lease in taken)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    await submit(queue, *jobs)
    for worker in workers:
        await asyncio.to_thread(worker.join)
    assert sorted(claimed) == sorted(one.id for one in jobs)


async def test_a_full_queue_says_when_to_come_back(
    make_queue: Callable[[QueueLimits], JobQueue],
) -> None:
    async with make_queue(QueueLimits(max_jobs=2)) as queue:
        jobs = [job(), job(), job()]
        await submit(queue, *jobs[:2])
        with pytest.raises(QueueFullError) as refusal:
            await queue.submit(jobs[2])
        assert refusal.value.retry_after == DEFAULT_RETRY_AFTER  # how fast it drains is unknown
        await submit(queue, job(model="other"))  # each model has a queue of its own
        assert jobs_of(claim(queue, 1)) == jobs[:1]
        await submit(queue, jobs[2])  # the claimed one does not count
        assert jobs_of(claim(queue, 10)) == jobs[1:]
        assert (await queue.stats()).totals.accepted == 4


async def test_an_owner_gets_its_share_of_the_queue(
    make_queue: Callable[[QueueLimits], JobQueue],
) -> None:
    async with make_queue(QueueLimits(max_jobs=8)) as queue:
        for _ in range(2):
            await queue.submit(job(owner="alice"), share=0.25)
        with pytest.raises(ShareExceededError) as refusal:
            await queue.submit(job(owner="alice"), share=0.25)
        assert refusal.value.retry_after == DEFAULT_RETRY_AFTER  # how fast it drains is unknown
        await queue.submit(job(owner="bob"), share=0.01)  # one is always allowed
        with pytest.raises(ShareExceededError):
            await queue.submit(job(owner="bob"), share=0.01)
        claim(queue, 1)
        await queue.submit(job(owner="alice"), share=0.25)


async def test_the_same_key_and_request_are_one_job(queue: JobQueue) -> None:
    first = job(keep=True, owner="alice", idempotency=Idempotency("k", "print"))
    again = job(keep=True, owner="alice", idempotency=Idempotency("k", "print"))
    await submit(queue, first)
    receipt = await queue.submit(again)
    assert (receipt.job_id, receipt.is_new) == (first.id, False)
    (lease,) = claim(queue)
    assert lease.job == first
    queue.report([(lease, result())])
    receipt = await queue.submit(again)  # also afterwards
    assert (receipt.job_id, receipt.is_new) == (first.id, False)
    assert await queue.outcome(receipt.job_id) == result()
    assert (await queue.stats()).totals.accepted == 1


async def test_a_key_is_known_to_a_full_queue(
    make_queue: Callable[[QueueLimits], JobQueue],
) -> None:
    async with make_queue(QueueLimits(max_jobs=1)) as queue:
        first = job(keep=True, idempotency=Idempotency("k", "print"))
        await submit(queue, first)
        again = job(keep=True, idempotency=Idempotency("k", "print"))
        assert (await queue.submit(again)).job_id == first.id


async def test_the_same_key_for_something_else_is_a_conflict(queue: JobQueue) -> None:
    await submit(queue, job(keep=True, owner="alice", idempotency=Idempotency("k", "one")))
    with pytest.raises(IdempotencyConflictError):
        await queue.submit(job(keep=True, owner="alice", idempotency=Idempotency("k", "two")))
    await submit(queue, job(keep=True, owner="bob", idempotency=Idempotency("k", "two")))


@pytest.mark.parametrize("state", ["cancelled", "expired"])
async def test_a_key_of_a_job_that_was_given_up_can_be_used_again(
    queue: JobQueue, state: str
) -> None:
    first = job(keep=True, idempotency=Idempotency("k", "print"))
    await submit(queue, first)
    await queue.cancel(first.id, state)  # type: ignore[arg-type]
    await submit(queue, job(keep=True, idempotency=Idempotency("k", "print")))


async def test_a_key_of_a_job_that_failed_stands_for_its_failure(queue: JobQueue) -> None:
    first = job(keep=True, idempotency=Idempotency("k", "print"))
    await submit(queue, first)
    (lease,) = claim(queue)
    queue.report([(lease, JobFailure("EngineError", "no"))])
    again = await queue.submit(job(keep=True, idempotency=Idempotency("k", "print")))
    assert (again.job_id, again.is_new) == (first.id, False)


async def test_a_key_is_forgotten_with_its_job(queue: JobQueue) -> None:
    first = job(idempotency=Idempotency("k", "print"))
    await submit(queue, first)
    (lease,) = claim(queue)
    queue.report([(lease, result())])
    await queue.forget(first.id)
    await submit(queue, job(idempotency=Idempotency("k", "another")))


async def test_keys_belong_to_their_owners(queue: JobQueue) -> None:
    await submit(queue, job(owner="a", idempotency=Idempotency("b:c", "print")))
    await submit(queue, job(owner="a:b", idempotency=Idempotency("c", "print")))
    await submit(queue, job(owner="", idempotency=Idempotency("a:b:c", "print")))


async def test_a_key_of_a_job_that_was_refused_later_can_be_used_again(queue: JobQueue) -> None:
    await submit(queue, job(keep=True, idempotency=Idempotency("k", "print")))
    (lease,) = claim(queue)
    failure = JobFailure("NoWorkerError", "not that version any more")
    assert queue.report([(lease, failure)]) == [True]
    await submit(queue, job(keep=True, idempotency=Idempotency("k", "print")))


async def test_fifty_submissions_at_once_with_one_key_are_one_job(queue: JobQueue) -> None:
    jobs = [job(keep=True, idempotency=Idempotency("k", "print")) for _ in range(50)]
    receipts = await asyncio.gather(*map(queue.submit, jobs))
    assert len({receipt.job_id for receipt in receipts}) == 1
    assert sum(receipt.is_new for receipt in receipts) == 1


async def test_a_cancelled_job_that_waits_is_never_claimed(queue: JobQueue) -> None:
    jobs = [job(), job()]
    await submit(queue, *jobs)
    await queue.cancel(jobs[0].id)
    assert jobs_of(claim(queue)) == jobs[1:]
    assert (await queue.status(jobs[0].id)).state == "cancelled"


@pytest.mark.parametrize(("state", "outcome"), [("cancelled", CANCELLED), ("expired", EXPIRED)])
async def test_cancelling_wakes_who_waits_and_stops_who_runs(
    queue: JobQueue, state: str, outcome: Outcome
) -> None:
    sent = job()
    await submit(queue, sent)
    (lease,) = claim(queue)
    waiting = asyncio.create_task(queue.outcome(sent.id))
    await asyncio.sleep(0)
    await queue.cancel(sent.id, state)  # type: ignore[arg-type]
    assert await asyncio.wait_for(waiting, 5.0) == outcome
    await until(lambda: queue.lost_leases([lease]) == {sent.id})
    assert queue.report([(lease, result())]) == [False]
    assert await queue.outcome(sent.id) == outcome
    assert (await queue.stats()).totals.ended == {state: 1}


async def test_a_worker_is_told_which_of_its_jobs_are_in_vain(queue: JobQueue) -> None:
    jobs = [job() for _ in range(3)]
    await submit(queue, *jobs)
    leases = claim(queue)
    assert queue.lost_leases(leases) == set()
    await queue.cancel(jobs[1].id)
    await until(lambda: queue.lost_leases(iter(leases)) == {jobs[1].id})
    assert queue.lost_leases(leases[2:]) == set()
    queue.renew(leases)
    assert queue.lost_leases(leases) == {jobs[1].id}
    assert queue.lost_leases([]) == set()


async def test_cancelling_what_is_over_or_unknown_does_nothing(queue: JobQueue) -> None:
    sent = job()
    await submit(queue, sent)
    (lease,) = claim(queue)
    queue.report([(lease, result())])
    await queue.cancel(sent.id)
    assert await queue.outcome(sent.id) == result()
    await queue.cancel("nobody")
    assert (await queue.stats()).totals.ended == {"ok": 1}


async def test_a_job_whose_time_is_up_is_not_claimed(queue: JobQueue) -> None:
    late, sent = job(timeout=0.05), job()
    await submit(queue, late, sent)
    await asyncio.sleep(0.1)
    assert jobs_of(claim(queue)) == [sent]
    assert await queue.outcome(late.id) == EXPIRED
    assert (await queue.stats()).totals.ended == {"expired": 1}


async def test_a_job_whose_time_is_up_ends_without_any_worker(queue: JobQueue) -> None:
    late = job(timeout=0.05)
    await submit(queue, late)
    async with asyncio.timeout(5.0):
        while (await queue.status(late.id)).state != "expired":  # noqa: ASYNC110 - what is tested
            await asyncio.sleep(0.01)
    assert (await queue.stats()).depth == 0


async def test_a_worker_gives_back_what_it_has_not_done(queue: JobQueue) -> None:
    jobs = [job() for _ in range(4)]
    await submit(queue, *jobs)
    leases = claim(queue, 3)
    queue.report([(lease, REQUEUE) for lease in leases[1:]])
    assert (await queue.status(jobs[1].id)).state == "waiting"
    assert queue.report([(leases[1], result("from a lease that was given back"))]) == [False]
    again = claim(queue)
    assert jobs_of(again) == jobs[1:]
    assert [lease.token for lease in again] == [2, 2, 1]
    assert (await queue.status(jobs[1].id)).deliveries == 1
    for lease in [leases[0], *again]:
        assert queue.report([(lease, result())]) == [True]
    totals = (await queue.stats()).totals
    assert totals == Totals(4, {"ok": 4}, {"handed_back": 2}, dead_lettered=0, fenced=1)


async def test_what_is_lost_cannot_be_given_back(queue: JobQueue) -> None:
    jobs = [job(), job()]
    await submit(queue, *jobs)
    leases = claim(queue)
    await queue.cancel(jobs[0].id)
    queue.report([(lease, REQUEUE) for lease in leases])
    queue.report([(lease, REQUEUE) for lease in leases])
    assert (await queue.status(jobs[0].id)).state == "cancelled"
    assert jobs_of(claim(queue)) == jobs[1:]
    totals = (await queue.stats()).totals
    assert totals == Totals(2, {"cancelled": 1}, {"handed_back": 1})


async def test_a_renewed_lease_holds_for_its_length_and_no_longer(
    make_queue: Callable[[QueueLimits], JobQueue],
) -> None:
    limits = QueueLimits(lease_seconds=0.3)
    async with make_queue(limits) as queue:
        await submit(queue, job())
        (lease,) = claim(queue)
        queue.renew([lease])
        renewed = time.monotonic()
        again = await asyncio.to_thread(queue.claim, "tiny", 1, 4 * limits.lease_seconds)
        if not queue.is_remote:  # its worker cannot be lost without it
            assert not again
            assert queue.report([(lease, result())]) == [True]
            return
        assert time.monotonic() - renewed > limits.lease_seconds - 0.01  # clocks are rounded
        assert [one.job_id for one in again] == [lease.job_id]
        assert queue.report([(lease, result())]) == [False]


async def test_a_job_that_runs_for_too_long_is_expired(queue: JobQueue) -> None:
    sent = job(timeout=0.5, keep=True)
    await submit(queue, sent)
    (lease,) = claim(queue)
    assert 0 < lease.seconds_left <= 0.5
    assert await asyncio.wait_for(queue.outcome(sent.id), 5.0) == EXPIRED
    await until(lambda: queue.lost_leases([lease]) == {sent.id})
    assert queue.report([(lease, result())]) == [False]
    assert (await queue.stats()).totals == Totals(1, {"expired": 1}, fenced=1)


EVENTS: list[Event] = [
    Started("v1"),
    Progress(0, 2, 8),
    Preview(0, 2, 8, "webp", b"\x00\xffpicture"),
    Progress(1, 4, 8),
]


async def test_events_come_in_order_and_end_with_the_job(queue: JobQueue) -> None:
    sent = job(keep=True)
    await submit(queue, sent)
    early = asyncio.create_task(collect(queue, sent.id))
    await asyncio.sleep(0.01)
    (lease,) = claim(queue)
    for event in EVENTS[:2]:
        queue.report([(lease, event)])
    late = asyncio.create_task(collect(queue, sent.id, after=1))
    await asyncio.sleep(0.01)
    for event in EVENTS[2:]:
        queue.report([(lease, event)])
    queue.report([(lease, result())])
    expected = [NumberedEvent(i, event) for i, event in enumerate(EVENTS, start=1)]
    assert await asyncio.wait_for(early, 5.0) == expected
    assert await asyncio.wait_for(late, 5.0) == expected[1:]
    assert await collect(queue, sent.id, after=3) == expected[3:]  # also afterwards
    assert await collect(queue, sent.id, after=4) == []


async def test_reports_of_many_jobs_are_taken_in_order_and_answered_one_by_one(
    queue: JobQueue,
) -> None:
    jobs = [job(keep=True) for _ in range(4)]
    await submit(queue, *jobs)
    ends, goes, lost, runs = claim(queue)
    early = asyncio.create_task(collect(queue, runs.job_id))
    await queue.cancel(lost.job_id)
    answers = queue.report(
        [
            (ends, EVENTS[0]),
            (runs, EVENTS[0]),
            (lost, EVENTS[0]),
            (ends, EVENTS[1]),
            (ends, result()),
            (ends, EVENTS[2]),
            (lost, result()),
            (goes, EVENTS[0]),
            (goes, REQUEUE),
            (goes, result()),
            (lost, REQUEUE),
            (runs, EVENTS[1]),
        ]
    )
    assert answers == [True, True, False, True, True, False, False, True, True, False, False, True]
    assert list(queue.report([])) == []
    states = [(await queue.status(one.id)).state for one in jobs]
    assert states == ["ok", "waiting", "cancelled", "running"]
    numbered = [NumberedEvent(i, event) for i, event in enumerate(EVENTS[:2], start=1)]
    assert await collect(queue, ends.job_id) == numbered
    queue.report([(runs, result())])
    assert await asyncio.wait_for(early, 5.0) == numbered
    totals = (await queue.stats()).totals
    assert (totals.redelivered, totals.fenced) == ({"handed_back": 1}, 2)


async def test_arrivals_are_heard_where_there_was_room_for_more(queue: JobQueue) -> None:
    heard: list[str] = []
    queue.on_arrival(heard.append)
    assert claim(queue) == claim(queue, model="other") == []
    await until(lambda: "" in heard or not queue.is_remote)  # it listens
    heard.clear()
    await submit(queue, job(model="tiny"))
    await until(lambda: heard == ["tiny"])
    queue.report([(lease, REQUEUE) for lease in claim(queue)])
    await until(lambda: heard == ["tiny"] * 2)
    claim(queue)
    await submit(queue, job(model="other"))
    await until(lambda: heard == ["tiny", "tiny", "other"])


async def test_events_arrive_while_the_job_runs(queue: JobQueue) -> None:
    sent = job()
    await submit(queue, sent)
    (lease,) = claim(queue)
    events = aiter(queue.events(sent.id))
    for number, event in enumerate(EVENTS, start=1):
        queue.report([(lease, event)])
        assert await asyncio.wait_for(anext(events), 5.0) == NumberedEvent(number, event)
    await queue.cancel(sent.id)
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(events), 5.0)


async def test_what_a_lost_lease_tells_is_ignored(queue: JobQueue) -> None:
    sent = job(keep=True)
    await submit(queue, sent)
    (lost,) = claim(queue)
    queue.report([(lost, REQUEUE)])
    (lease,) = claim(queue)
    queue.report([(lost, EVENTS[0])])
    queue.report([(lease, EVENTS[1])])
    queue.report([(lease, result())])
    assert await collect(queue, sent.id) == [NumberedEvent(1, EVENTS[1])]


async def test_what_comes_after_the_end_is_ignored(queue: JobQueue) -> None:
    jobs = [job(keep=True) for _ in range(2)]
    await submit(queue, *jobs)
    leases = claim(queue)
    queue.report([(leases[0], EVENTS[0])])
    queue.report([(leases[0], result())])
    await queue.cancel(jobs[1].id)
    for lease in leases:
        queue.report([(lease, EVENTS[1])])
    assert await collect(queue, jobs[0].id) == [NumberedEvent(1, EVENTS[0])]
    assert await collect(queue, jobs[1].id) == []


async def test_many_events_at_once_come_in_order(queue: JobQueue) -> None:
    sent = job(keep=True)
    await submit(queue, sent)
    (lease,) = claim(queue)
    for i in range(100):
        queue.report([(lease, Progress(0, i, 100))])
    queue.report([(lease, result())])
    expected = [NumberedEvent(i + 1, Progress(0, i, 100)) for i in range(100)]
    assert await collect(queue, sent.id) == expected
    assert await collect(queue, sent.id, after=36) == expected[36:]


async def test_the_state_of_a_job(queue: JobQueue) -> None:
    jobs = [job(keep=True) for _ in range(3)]
    await submit(queue, *jobs)
    statuses = [await queue.status(one.id) for one in jobs]
    assert [(s.state, s.position, s.deliveries) for s in statuses] == [
        ("waiting", i, 0) for i in range(3)
    ]
    assert [status.job for status in statuses] == jobs
    (lease,) = claim(queue, 1)
    statuses = [await queue.status(one.id) for one in jobs]
    assert [(s.state, s.position) for s in statuses] == [
        ("running", None),
        ("waiting", 0),
        ("waiting", 1),
    ]
    queue.report([(lease, JobFailure("EngineError", "no"))])
    ended = await queue.status(jobs[0].id)
    assert (ended.state, ended.position, ended.deliveries) == ("error", None, 1)


async def test_the_state_of_the_queue(queue: JobQueue) -> None:
    empty = await queue.stats()
    assert (empty.depth, empty.running, empty.oldest_age, empty.completion_rate) == (0, 0, 0.0, 0.0)
    assert empty.totals == Totals()
    old = job(submitted_at=time.time() - 60)
    await submit(queue, old, job())
    waiting = await queue.stats()
    assert (waiting.depth, waiting.running) == (2, 0)
    assert 60 <= waiting.oldest_age < 65
    (lease,) = claim(queue, 1)
    assert (await queue.stats()).running == 1
    queue.report([(lease, result())])
    later = await queue.stats()
    assert (later.depth, later.running) == (1, 0)
    assert later.oldest_age < 5
    assert later.completion_rate > 0
    assert later.totals == Totals(accepted=2, ended={"ok": 1})


async def test_the_oldest_job_may_be_of_any_model(queue: JobQueue) -> None:
    now = time.time()
    await submit(queue, job(model="z", submitted_at=now - 300))
    await submit(queue, job(model="a", submitted_at=now - 200))
    await submit(queue, job(model="z", submitted_at=now - 100))
    assert 300 <= (await queue.stats()).oldest_age < 305
    claim(queue, 1, model="z")
    assert 200 <= (await queue.stats()).oldest_age < 205
    claim(queue, 1, model="a")
    assert 100 <= (await queue.stats()).oldest_age < 105


async def test_an_idle_spell_says_nothing_of_how_fast_the_queue_drains(queue: JobQueue) -> None:
    for _ in range(2):
        await submit(queue, job())
        assert (await queue.stats()).completion_rate == 0.0
        leases = claim(queue)
        await submit(queue, job())
        for lease in [*leases, *claim(queue)]:
            queue.report([(lease, result())])
            assert (await queue.stats()).completion_rate > 0.0


async def test_an_empty_line_is_no_idle_spell_while_a_job_runs(queue: JobQueue) -> None:
    await submit(queue, job(), job())
    first, _ = claim(queue)
    queue.report([(first, result())])
    await submit(queue, job())
    assert (await queue.stats()).completion_rate > 0.0


async def test_each_model_has_a_line_and_a_rate_of_its_own(queue: JobQueue) -> None:
    await submit(queue, *(job(model="busy") for _ in range(3)), job(model="slow"))
    await submit(queue, job(model="slow", submitted_at=time.time() - 60))
    for lease in claim(queue, 2, model="busy"):
        queue.report([(lease, result())])
    stats = await queue.stats()
    busy, slow = stats.models["busy"], stats.models["slow"]
    assert (busy.depth, slow.depth, stats.depth) == (1, 2, 3)
    assert busy.oldest_age < 5
    assert 60 <= slow.oldest_age < 65  # by submission, wherever in the queue it is
    waiting = job(model="busy")
    await submit(queue, waiting)
    assert (await queue.status(waiting.id)).completion_rate > 0.0
    assert stats.completion_rate == busy.completion_rate > slow.completion_rate == 0.0
    await submit(queue, job(model="new"))  # an idle spell of one ends, and no other's
    assert (await queue.stats()).models["busy"].completion_rate > 0.0
    claim(queue, 1, model="slow")
    assert 60 <= (await queue.stats()).models["slow"].oldest_age < 65


async def test_who_is_refused_waits_as_the_model_drains_that_was_asked_for(
    make_queue: Callable[[QueueLimits], JobQueue],
) -> None:
    waits = {}
    async with make_queue(QueueLimits(max_jobs=4)) as queue:
        await submit(queue, *(job(model=model) for model in ("busy", "slow") for _ in range(4)))
        for lease in claim(queue, 3, model="busy"):
            queue.report([(lease, result())])
        await submit(queue, *(job(model="busy") for _ in range(3)))
        for model in ("busy", "slow"):
            with pytest.raises(QueueFullError) as refused:
                await queue.submit(job(model=model))
            waits[model] = refused.value.retry_after
    assert waits["busy"] < waits["slow"] == DEFAULT_RETRY_AFTER


async def test_a_lease_that_was_reported_on_for_good_is_over_at_once(queue: JobQueue) -> None:
    await submit(queue, job(), job(), job())
    finished, given_back, held = leases = claim(queue)
    queue.report([(finished, result())])
    queue.report([(given_back, REQUEUE)])
    assert queue.lost_leases(leases) == {finished.job_id, given_back.job_id}
    assert queue.lost_leases([held]) == set()


async def test_workers_come_change_and_go(queue: JobQueue) -> None:
    warming = WorkerStatus("a", ready=False, detail="warming up")
    ready = WorkerStatus("a", ready=True, model="tiny", version="v1", refused="v2")
    other = WorkerStatus("b", ready=True, model="tiny", version="v2")

    async def known(*expected: WorkerStatus) -> None:
        async with asyncio.timeout(5.0):
            while sorted(await queue.workers(), key=str) != list(expected):  # noqa: ASYNC110 - same
                await asyncio.sleep(0.001)

    await known()
    queue.announce(warming)
    await known(warming)
    queue.announce(ready)
    queue.announce(other)
    await known(ready, other)
    queue.remove_worker("a")
    queue.remove_worker("nobody")
    await known(other)
