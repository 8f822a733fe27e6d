"""Workers that are lost, and what becomes of their jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import redis

from masc_core.errors import PoisonJobError
from tests.stopwatch import Stopwatch
from tests.worker.jobs.redis.conftest import MakeWorker
from tests.worker.jobs.samples import claim, job, jobs_of, result, submit, until
from worker.jobs.job import Lease, Progress
from worker.jobs.queue import REQUEUE, QueueLimits, Totals
from worker.jobs.redis.leases import HeldLeases
from worker.jobs.redis.queue import RedisQueue

pytestmark = pytest.mark.anyio

SHORT = QueueLimits(lease_seconds=0.5)
CLOCKS = 0.01  # seconds by which Redis' and this process' may differ, which both are rounded
LONG = QueueLimits(lease_seconds=60.0)


@pytest.fixture
def lose(inside: redis.Redis) -> Callable[[Lease], None]:
    """Let a lease run out now."""

    def lose(lease: Lease) -> None:
        assert inside.zadd("{masc}:leases", {lease.job_id: 1}, xx=True, ch=True) == 1

    return lose


async def test_the_jobs_of_a_lost_worker_are_the_first_to_be_claimed(
    redis_url: str, make_worker: MakeWorker, lose: Callable[[Lease], None]
) -> None:
    lost, other = make_worker(LONG), make_worker(LONG)
    async with RedisQueue(redis_url, LONG) as front:
        jobs = [job() for _ in range(5)]
        await submit(front, *jobs)
        leases = claim(lost, 3)
        for lease in (leases[2], leases[0]):
            lose(lease)
        statuses = [await front.status(one.id) for one in jobs]
        assert [status.position for status in statuses] == [0, None, 1, 2, 3]
        again = claim(other, 3)
        assert jobs_of(again) == [jobs[0], jobs[2], jobs[3]]
        assert [lease.token for lease in again] == [2, 2, 1]
        assert (await front.status(jobs[0].id)).deliveries == 2
        await until(lambda: lost.lost_leases(leases) == {jobs[0].id, jobs[2].id})
        assert (await front.stats()).totals.redelivered == {"lease_expired": 2}


async def test_jobs_on_their_last_try_are_had_one_at_a_time(
    redis_url: str, make_worker: MakeWorker, lose: Callable[[Lease], None]
) -> None:
    lost, worker, other = make_worker(LONG), make_worker(LONG), make_worker(LONG)
    async with RedisQueue(redis_url, LONG) as front:
        suspects = [job() for _ in range(3)]
        await submit(front, *suspects)
        for _ in range(LONG.max_deliveries - 1):
            leases = claim(lost)
            assert jobs_of(leases) == suspects  # all at once, until it is the last try
            for lease in leases:
                lose(lease)
        fresh = [job(), job()]
        await submit(front, *fresh)
        first = claim(worker)
        assert jobs_of(first) == [suspects[0], *fresh]
        assert claim(worker) == []
        assert jobs_of(claim(other)) == [suspects[1]]
        assert worker.report([(first[0], result())]) == [True]
        assert jobs_of(claim(worker)) == [suspects[2]]


async def test_a_claim_that_waits_gets_the_jobs_of_a_lost_worker(
    redis_url: str, make_worker: MakeWorker
) -> None:
    async with RedisQueue(redis_url, SHORT) as front:
        sent = job()
        await submit(front, sent)
        with Stopwatch() as watch:
            started = time.monotonic()
            claim(make_worker(SHORT))
            (lease,) = await asyncio.to_thread(make_worker(SHORT).claim, "tiny", 1, 30.0)
        assert watch.seconds < 2.0
        assert time.monotonic() - started > SHORT.lease_seconds - CLOCKS
        assert lease.job == sent


async def test_what_a_lost_worker_reports_is_fenced(
    redis_url: str, make_worker: MakeWorker, lose: Callable[[Lease], None]
) -> None:
    lost, other = make_worker(LONG), make_worker(LONG)
    async with RedisQueue(redis_url, LONG) as front:
        sent = job(keep=True)
        await submit(front, sent)
        (stale,) = claim(lost)
        lose(stale)
        (lease,) = claim(other)
        lost.report([(stale, Progress(0, 1, 8))])
        lost.renew([stale])
        lost.report([(stale, REQUEUE)])
        assert lost.report([(stale, result("late"))]) == [False]
        assert lost.lost_leases([stale]) == {sent.id}
        assert other.lost_leases([lease]) == set()
        assert other.report([(lease, result("in time"))]) == [True]
        assert lost.report([(stale, result("later"))]) == [False]
        assert await front.outcome(sent.id) == result("in time")
        assert [event async for event in front.events(sent.id)] == []
        assert (await front.stats()).totals == Totals(
            1, {"ok": 1}, {"lease_expired": 1}, dead_lettered=0, fenced=2
        )


async def test_a_job_with_which_three_workers_were_lost_ends(
    redis_url: str,
    make_worker: MakeWorker,
    lose: Callable[[Lease], None],
    inside: redis.Redis,
) -> None:
    worker = make_worker(LONG)
    async with RedisQueue(redis_url, LONG) as front:
        poison, mate = job(), job()
        await submit(front, poison, mate)
        for delivery in (1, 2, 3):
            (lease,) = claim(worker, 1)
            assert (lease.job, lease.token) == (poison, delivery)
            lose(lease)
        assert jobs_of(claim(worker)) == [mate]
        with pytest.raises(PoisonJobError):
            raise (await front.outcome(poison.id)).to_error()  # type: ignore[union-attr]
        totals = (await front.stats()).totals
        assert totals == Totals(2, {"error": 1}, {"lease_expired": 2}, dead_lettered=1)
    letters = inside.xrange("{masc}:dead")
    assert letters is not None
    assert letters[0][1] == {"id": poison.id, "model": "tiny", "owner": "", "deliveries": "3"}


async def test_a_job_that_was_handed_back_is_no_poison(
    redis_url: str, make_worker: MakeWorker
) -> None:
    worker = make_worker(LONG)
    async with RedisQueue(redis_url, LONG) as front:
        await submit(front, job())
        for _ in range(5):
            worker.report([(lease, REQUEUE) for lease in claim(worker)])
        (lease,) = claim(worker)
        assert worker.report([(lease, result())]) == [True]


async def test_a_renewed_lease_holds_longer_than_three_leases(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    worker, other = make_worker(LONG), make_worker(LONG)
    most = LONG.lease_seconds * 2 / 3  # may pass until it is renewed
    async with RedisQueue(redis_url, LONG) as front:
        await submit(front, job())
        leases = claim(worker)
        for _ in range(6):
            inside.zincrby("{masc}:leases", -1000 * most, leases[0].job_id)
            assert claim(other) == []
            await asyncio.to_thread(worker.renew, iter(leases))
        assert worker.lost_leases(leases) == set()
        assert worker.report([(leases[0], result())]) == [True]
        assert (await front.stats()).totals == Totals(1, {"ok": 1})


async def test_a_lease_ends_its_length_after_it_was_claimed_or_renewed(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    def seconds() -> float:
        whole, microseconds = inside.time()
        return whole + microseconds / 1e6

    def left_since(before: float) -> float:
        end = inside.zscore("{masc}:leases", lease.job_id)
        assert end is not None
        return float(end) / 1000 - before

    worker = make_worker(LONG)
    async with RedisQueue(redis_url, LONG) as front:
        await submit(front, job())
        before = seconds()
        (lease,) = claim(worker)
        for _ in range(2):
            taken = seconds() - before
            left = left_since(before)
            assert LONG.lease_seconds - CLOCKS < left < LONG.lease_seconds + taken + CLOCKS
            before = seconds()
            worker.renew([lease])


async def test_a_worker_without_news_learns_of_its_losses_when_it_renews(
    redis_url: str, make_worker: MakeWorker
) -> None:
    worker = make_worker(LONG)
    async with RedisQueue(redis_url, LONG) as front:
        jobs = [job(), job()]
        await submit(front, *jobs)
        leases = claim(worker)
        worker._updates.close()
        await front.cancel(jobs[0].id)
        assert worker.lost_leases(leases) == set()
        worker.renew(leases)
        assert worker.lost_leases(leases) == {jobs[0].id}


LEASE = Lease(job(), 1, 60.0)
LATER = replace(LEASE, token=2)


async def test_a_lease_is_over_with_the_report_of_its_end(
    redis_url: str, make_worker: MakeWorker
) -> None:
    worker = make_worker(LONG)
    async with RedisQueue(redis_url, LONG) as front:
        await submit(front, job(), job())
        done, returned = claim(worker, 2)
        worker.report([(done, Progress(0, 1, 4))])
        assert worker.lost_leases([done, returned]) == set()
        worker.report([(done, result()), (returned, REQUEUE)])
        assert worker.lost_leases([done, returned]) == {done.job_id, returned.job_id}


def test_only_what_was_claimed_is_held() -> None:
    held = HeldLeases()
    assert held.lost([LEASE]) == {LEASE.job_id}
    held.add([LEASE])
    assert held.lost([LEASE]) == set()
    assert held.tokens == {LEASE.job_id: LEASE.token}
    held.drop(LEASE.job_id, LEASE.token)
    assert held.lost([LEASE]) == {LEASE.job_id}
    assert held.tokens == {}


def test_the_end_of_an_older_lease_does_not_end_the_later_one() -> None:
    held = HeldLeases()
    held.add([LATER])
    held.drop(LEASE.job_id, LEASE.token)
    assert held.lost([LATER]) == set()
    assert held.lost([LEASE, LATER]) == {LEASE.job_id}


def test_what_is_lost_before_its_claim_returns_is_never_held() -> None:
    held = HeldLeases()
    with held.claiming():
        with held.claiming():
            held.drop(LEASE.job_id, LEASE.token)
        held.add([LEASE])
    assert held.lost([LEASE]) == {LEASE.job_id}
    with held.claiming():
        held.add([LEASE])
    assert held.lost([LEASE]) == set()
