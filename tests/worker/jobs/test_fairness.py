"""Whose job is next, in both adapters: priorities, weights, and that nobody starves."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest

from masc_core.errors import QueueFullError, ShareExceededError
from tests.worker.jobs.samples import claim, job, jobs_of, result, submit
from worker.jobs.fair import BATCH_EVERY
from worker.jobs.job import Job
from worker.jobs.outcome import CANCELLED
from worker.jobs.priority import PRIORITIES
from worker.jobs.queue import REQUEUE, JobQueue, PriorityStats, QueueLimits

pytestmark = pytest.mark.anyio

LIMITS = QueueLimits(max_jobs=200)
OWNERS = ("ann", "bob", "cem", "dan")


@pytest.fixture
async def queue(make_queue: Callable[[QueueLimits], JobQueue]) -> AsyncIterator[JobQueue]:
    async with make_queue(LIMITS) as queue:
        yield queue


def batch(num_images: int = 1, owner: str = "") -> Job:
    return job(num_images, owner=owner, priority="batch")


def claim_owners(queue: JobQueue, num_rows: int) -> list[str]:
    """Whose jobs are claimed, one row after another."""
    return [claim(queue, 1)[0].job.owner for _ in range(num_rows)]


async def test_who_has_many_jobs_waiting_does_not_delay_a_newcomer(queue: JobQueue) -> None:
    await submit(queue, *(job(owner="ann") for _ in range(20)))
    claim(queue, 3)
    late = job(owner="bob")
    await submit(queue, late)
    assert (await queue.status(late.id)).position == 0
    assert claim_owners(queue, 3) == ["bob", "ann", "ann"]


async def test_owners_take_turns_by_rows_and_not_by_jobs(queue: JobQueue) -> None:
    await submit(queue, *(job(4, owner="ann") for _ in range(5)))
    await submit(queue, *(job(1, owner="bob") for _ in range(20)))
    rows: Counter[str] = Counter()
    for _ in range(15):
        (taken,) = jobs_of(claim(queue, 1))
        rows[taken.owner] += taken.request.batch_rows
        assert abs(rows["ann"] - rows["bob"]) <= 4
    assert rows["bob"] > 8


async def test_owners_get_rows_in_proportion_to_their_weights(queue: JobQueue) -> None:
    for _ in range(40):
        for owner, weight in zip(OWNERS, (4.0, 2.0, 1.0, 0.5), strict=True):
            await queue.submit(job(owner=owner), weight=weight)
    taken = Counter(claim_owners(queue, 60))
    for owner, expected in zip(OWNERS, (32, 16, 8, 4), strict=True):
        assert abs(taken[owner] - expected) <= 1


async def test_one_owner_s_jobs_keep_their_order(queue: JobQueue) -> None:
    jobs = [job(1 + i % 3, owner="ann") for i in range(12)]
    for i, one in enumerate(jobs):
        await queue.submit(one, weight=(0.01, 1.0, 100.0)[i % 3])
    await submit(queue, *(job(owner="bob") for _ in range(5)))
    assert [one for one in jobs_of(claim(queue)) if one.owner == "ann"] == jobs


async def test_what_nobody_else_wanted_is_not_held_against_an_owner(queue: JobQueue) -> None:
    await submit(queue, *(job(owner="ann") for _ in range(50)))
    claim_owners(queue, 50)
    await submit(queue, *(job(owner=one) for _ in range(4) for one in ("ann", "bob")))
    assert Counter(claim_owners(queue, 4)) == {"ann": 2, "bob": 2}


@pytest.mark.parametrize("position", [1, 5])
async def test_no_owner_starves(queue: JobQueue, position: int) -> None:
    """Others of its weight have as many jobs as they like: k of each come before its k-th."""
    others = OWNERS[1:]
    await submit(queue, *(job(owner=owner) for owner in others for _ in range(20)))
    claim(queue, 7)
    own = [job(owner="ann") for _ in range(position)]
    await submit(queue, *own)
    before: Counter[str] = Counter()
    while (taken := jobs_of(claim(queue, 1))[0]) != own[-1]:
        before[taken.owner] += 1
        await submit(queue, *(job(owner=owner) for owner in others))
    assert all(before[owner] <= position for owner in others)


async def test_an_owner_of_the_least_weight_has_its_turn(queue: JobQueue) -> None:
    poor = [job(owner="ann") for _ in range(2)]
    for one in poor:
        await queue.submit(one, weight=0.05)
    taken: list[Job] = []
    while poor[-1] not in taken:
        await submit(queue, job(owner="bob"))
        taken += jobs_of(claim(queue, 1))
    assert taken[0] == poor[0]
    assert 20 <= taken.index(poor[1]) <= 22


async def test_who_never_has_two_jobs_waiting_gets_no_more_turns(queue: JobQueue) -> None:
    await submit(queue, *(job(owner="ann") for _ in range(10)))
    taken = claim_owners(queue, 1)
    while taken.count("ann") < 5:
        await submit(queue, job(owner=OWNERS[1 + len(taken) % 3]))
        taken += claim_owners(queue, 1)
    assert all(taken.count(owner) <= 5 for owner in OWNERS)


async def test_interactive_jobs_go_before_batch_jobs_of_anybody(queue: JobQueue) -> None:
    waiting = [batch(owner=owner) for owner in OWNERS for _ in range(2)]
    await submit(queue, *waiting)
    urgent = [job(2, owner=owner) for owner in (*OWNERS, "eve")]
    await submit(queue, *urgent)
    assert [(await queue.status(one.id)).position for one in urgent] == [0, 1, 2, 3, 4]
    assert (await queue.status(waiting[0].id)).position == 5
    taken = jobs_of(claim(queue))
    assert taken[:5] == urgent
    assert sorted(one.id for one in taken[5:]) == sorted(one.id for one in waiting)
    assert [one.owner for one in taken[5:9]] == list(OWNERS)  # these take turns, too


@pytest.mark.parametrize("num_images", [1, 3])
async def test_batch_jobs_do_not_starve(queue: JobQueue, num_images: int) -> None:
    """However many interactive jobs there are, of one owner or many."""
    late = [batch(num_images, owner="ann") for _ in range(2)]
    await submit(queue, *late, *(job(owner=owner) for owner in OWNERS))
    taken: list[Job] = []
    while late[-1] not in taken:
        taken += jobs_of(claim(queue, 1))
        await submit(queue, job(owner=OWNERS[len(taken) % 4]))
    between = BATCH_EVERY * num_images
    assert [taken.index(one) for one in late] == [between, 2 * between + 1]


async def test_batch_jobs_take_what_interactive_ones_leave(queue: JobQueue) -> None:
    jobs = [batch(owner="ann"), job(owner="ann"), batch(owner="ann")]
    await submit(queue, *jobs)
    assert jobs_of(claim(queue)) == [jobs[1], jobs[0], jobs[2]]
    await submit(queue, batch())
    assert len(claim(queue, 1)) == 1


async def test_a_batch_job_in_turn_is_not_overtaken_where_it_does_not_fit(queue: JobQueue) -> None:
    await submit(queue, batch(2), *(job() for _ in range(40)))
    claim(queue, 2 * BATCH_EVERY - 1)
    assert [one.priority for one in jobs_of(claim(queue, 2))] == ["interactive"]
    assert [one.priority for one in jobs_of(claim(queue, 2))] == ["batch"]


async def test_priorities_have_limits_of_their_own(
    make_queue: Callable[[QueueLimits], JobQueue],
) -> None:
    async with make_queue(QueueLimits(max_jobs=4)) as queue:
        for priority in PRIORITIES:
            for _ in range(2):
                await queue.submit(job(owner="ann", priority=priority), share=0.5)
            with pytest.raises(ShareExceededError, match="2 jobs of this client"):
                await queue.submit(job(owner="ann", priority=priority), share=0.5)
            for _ in range(2):
                await queue.submit(job(owner="bob", priority=priority), share=0.5)
            with pytest.raises(QueueFullError, match="4 jobs wait already"):
                await queue.submit(job(owner="cem", priority=priority), share=0.5)
        assert [one.priority for one in jobs_of(claim(queue, 5))].count("batch") == 1
        await submit(queue, job(owner="cem"), batch(owner="cem"))
        with pytest.raises(QueueFullError):
            await queue.submit(batch(owner="cem"))


async def test_a_job_that_is_given_back_has_its_place(queue: JobQueue) -> None:
    jobs = [job(owner=owner, priority=one) for one in PRIORITIES for owner in "abc" for _ in "12"]
    await submit(queue, *jobs)
    leases = claim(queue, 8)
    late = job(owner="a")
    await submit(queue, late)
    queue.report([(lease, REQUEUE) for lease in reversed(leases)])
    positions = [(await queue.status(lease.job_id)).position for lease in leases]
    assert positions == [*range(6), 7, 8]  # behind the late one, which is interactive
    again = jobs_of(claim(queue))
    assert again[:6] == jobs_of(leases)[:6]
    assert again[6:9] == [late, *jobs_of(leases)[6:]]


async def test_what_was_cancelled_before_it_ran_is_not_held_against_its_owner(
    queue: JobQueue,
) -> None:
    await submit(queue, *(job(owner="bob") for _ in range(3)))
    cancelled = [job(owner="ann") for _ in range(10)]
    await submit(queue, *cancelled)
    for one in reversed(cancelled):
        await queue.cancel(one.id)
    await submit(queue, *(job(owner="ann") for _ in range(2)))
    assert claim_owners(queue, 4) == ["bob", "ann", "bob", "ann"]


async def test_age_and_depth_are_told_for_each_priority(queue: JobQueue) -> None:
    assert (await queue.stats()).priorities == dict.fromkeys(PRIORITIES, PriorityStats(0, 0.0))
    old = job(owner="ann", model="other")
    old_batch = batch(owner="ann")
    await submit(queue, old, old_batch)
    await asyncio.sleep(0.05)
    await submit(queue, job(owner="bob"), batch(owner="bob"), batch(owner="cem"))
    stats = await queue.stats()
    assert [stats.priorities[one].depth for one in PRIORITIES] == [2, 3]
    ages = [stats.priorities[one].oldest_age for one in PRIORITIES]
    assert all(0.05 <= age < 5.0 for age in ages)
    assert stats.oldest_age == max(ages)
    await queue.cancel(old.id)
    claim(queue, 2)
    stats = await queue.stats()
    assert stats.priorities == {
        "interactive": PriorityStats(0, 0.0),
        "batch": stats.priorities["batch"],
    }
    assert stats.priorities["batch"].depth == 2
    assert stats.priorities["batch"].oldest_age < ages[1]


async def test_an_owner_s_jobs_are_cancelled_together(queue: JobQueue) -> None:
    own = [job(owner="ann"), batch(owner="ann"), job(owner="ann", model="other")]
    others = [job(owner="an"), job(owner=""), job(owner="batch"), batch(owner="bob")]
    done, running = job(owner="ann"), job(owner="ann")
    await submit(queue, done, running)
    leases = claim(queue, 2)
    queue.report([(leases[0], result())])
    await submit(queue, *others, *own)
    assert await queue.cancel_all("nobody") == 0
    assert await queue.cancel_all("ann", "batch", "running") == 0
    assert await queue.cancel_all("ann", "batch") == 1
    assert await queue.cancel_all("ann", state="running") == 1
    assert await queue.outcome(running.id) == CANCELLED
    assert queue.report([(leases[1], result())]) == [False]
    assert await queue.cancel_all("ann") == 2
    assert await queue.cancel_all("ann") == 0
    assert await queue.outcome(done.id) == result()
    assert {(await queue.status(one.id)).state for one in own} == {"cancelled"}
    assert {(await queue.status(one.id)).state for one in others} == {"waiting"}


async def test_hundreds_of_jobs_are_cancelled_together(queue: JobQueue) -> None:
    for _ in range(500):
        with suppress(QueueFullError):
            await queue.submit(job(owner="ann"))
            await queue.submit(batch(owner="ann"))
    await submit(queue, job(owner="ann", model="other"))
    assert await queue.cancel_all("ann") == 401
    stats = await queue.stats()
    assert (stats.depth, stats.totals.ended) == (0, {"cancelled": 401})
