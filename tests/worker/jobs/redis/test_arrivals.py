"""Whom a job wakes, and what a large fleet asks of Redis."""

from __future__ import annotations

import asyncio

import pytest
import redis

from tests.worker.jobs.redis.conftest import MakeWorker
from tests.worker.jobs.samples import claim, job, result, submit, until
from worker.jobs.queue import REQUEUE, QueueLimits, WorkerStatus
from worker.jobs.redis.consumer import MAX_POLLS_PER_SECOND
from worker.jobs.redis.queue import RedisQueue

pytestmark = pytest.mark.anyio

LIMITS = QueueLimits()


class IdleWorker:
    """One that has found the queue empty, and listens."""

    def __init__(self, make_worker: MakeWorker) -> None:
        self.queue = make_worker(LIMITS)
        self.heard: list[str] = []
        self.queue.on_arrival(self.heard.append)

    async def listen(self, rows: int = 8) -> IdleWorker:
        assert claim(self.queue, rows) == []
        await until(lambda: "" in self.heard)
        self.heard.clear()
        return self


async def some(make_worker: MakeWorker, *rows: int) -> list[IdleWorker]:
    return [await IdleWorker(make_worker).listen(one) for one in rows]


async def test_a_job_wakes_one_worker_and_the_next_job_another(
    redis_url: str, make_worker: MakeWorker
) -> None:
    workers = await some(make_worker, *[8] * 6)
    async with RedisQueue(redis_url, LIMITS) as front:
        for num in (1, 2, 3):
            await submit(front, job())
            await until(lambda num=num: sum(len(one.heard) for one in workers) == num)  # type: ignore[misc]
        assert sorted(one.heard for one in workers) == [[]] * 3 + [["tiny"]] * 3


async def test_the_worker_with_the_most_room_is_woken(
    redis_url: str, make_worker: MakeWorker
) -> None:
    small, large, full = await some(make_worker, 2, 9, 10)
    async with RedisQueue(redis_url, LIMITS) as front:
        await submit(front, job(num_images=4))
        await until(lambda: full.heard == ["tiny"])
        assert len(claim(full.queue, 4)) == 1  # so it has no room, until it claims again
        full.heard.clear()
        await submit(front, job())
        await until(lambda: large.heard == ["tiny"])
        assert claim(full.queue, 4)
        await submit(front, job(), job())
        await until(lambda: full.heard == small.heard == ["tiny"])


async def test_whatever_comes_back_wakes_somebody(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    holder, idle = make_worker(LIMITS), IdleWorker(make_worker)
    async with RedisQueue(redis_url, LIMITS) as front:
        await submit(front, job(), job())
        handed_back, lost = claim(holder, 2)
        await idle.listen()
        holder.report([(handed_back, REQUEUE)])
        await until(lambda: idle.heard == ["tiny"])
        assert len(claim(idle.queue)) == 1
        inside.zadd("{masc}:leases", {lost.job_id: 1})
        await front.stats()
        await until(lambda: idle.heard == ["tiny"] * 2)


async def test_who_gives_a_job_back_is_woken_only_where_nobody_else_is(
    redis_url: str, make_worker: MakeWorker
) -> None:
    holder, idle = await some(make_worker, 9, 1)
    async with RedisQueue(redis_url, LIMITS) as front:
        await submit(front, job())
        await until(lambda: holder.heard == ["tiny"])
        (lease,) = claim(holder.queue, 9)  # it has room for more
        holder.queue.report([(lease, REQUEUE)])
        await until(lambda: idle.heard == ["tiny"])
        (lease,) = claim(idle.queue, 1)
        assert holder.heard == ["tiny"]
        await submit(front, job())  # for which the holder still listens
        await until(lambda: holder.heard == ["tiny"] * 2)
        (lease,) = claim(holder.queue, 9)
        holder.queue.report([(lease, REQUEUE)])
        await until(lambda: holder.heard == ["tiny"] * 3)


async def test_workers_that_have_gone_or_hang_are_passed_over(
    redis_url: str, make_worker: MakeWorker
) -> None:
    gone, hangs, idle = await some(make_worker, 9, 9, 8)
    gone.queue.close()
    hangs.queue.announce(WorkerStatus("hangs", ready=False))
    async with RedisQueue(redis_url, LIMITS) as front:
        await submit(front, job())
        await until(lambda: idle.heard == ["tiny"])
        assert hangs.heard == []
        # Ready again it is woken once it has claimed.
        hangs.queue.announce(WorkerStatus("hangs", ready=True))
        assert len(claim(hangs.queue, 9)) == 1
        await submit(front, job())
        await until(lambda: hangs.heard == ["tiny"])


async def test_a_wake_up_that_is_lost_costs_no_job(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    (idle,) = await some(make_worker, 8)
    inside.delete("{masc}:idle:tiny")
    async with RedisQueue(redis_url, LIMITS) as front:
        sent = job()
        await submit(front, sent)
        assert idle.heard == []
        (lease,) = claim(idle.queue)  # as it does after `poll_seconds`
        idle.queue.report([(lease, result())])
        assert await front.outcome(sent.id) == result()


async def test_a_large_fleet_polls_no_more_than_a_small_one(
    redis_url: str, make_worker: MakeWorker
) -> None:
    worker = make_worker(LIMITS)
    num_workers = 3 * MAX_POLLS_PER_SECOND
    for i in range(num_workers):
        worker.announce(WorkerStatus(f"w{i}", ready=True))
        seconds = max(1.0, (i + 1) / MAX_POLLS_PER_SECOND)
        assert 0.8 * seconds <= worker.poll_seconds <= 1.2 * seconds
    assert len({worker.poll_seconds for _ in range(9)}) > 1  # or all would ask at once


async def test_a_change_of_one_worker_is_read_alone(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    def num_read() -> int:
        return int(inside.info("commandstats").get("cmdstat_hgetall", {}).get("calls", 0))

    worker = make_worker(LIMITS)
    async with RedisQueue(redis_url, LIMITS) as front:
        for name in "abc":
            worker.announce(WorkerStatus(name, ready=True))
        await until(lambda: len(front._worker_list._changed) == 3)
        assert len(await front.workers()) == 3
        front._worker_list._all_due = float("inf")
        before = num_read()
        worker.announce(WorkerStatus("b", ready=True, version="v2"))
        worker.remove_worker("c")
        await until(lambda: len(front._worker_list._changed) == 2)
        assert [(one.worker_id, one.version) for one in await front.workers()] == [
            ("a", ""),
            ("b", "v2"),
        ]
        assert num_read() == before


async def test_whoever_asks_while_the_list_is_read_waits_for_it(
    redis_url: str, make_worker: MakeWorker
) -> None:
    make_worker(LIMITS).announce(WorkerStatus("a", ready=True))
    async with RedisQueue(redis_url, LIMITS) as front:
        lists = await asyncio.gather(*(front.workers() for _ in range(5)))
        assert [[one.worker_id for one in found] for found in lists] == [["a"]] * 5


async def test_workers_that_are_lost_together_leave_the_list_together(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    worker = make_worker(LIMITS)
    for i in range(100):
        worker.announce(WorkerStatus(f"w{i}", ready=True))
    inside.zadd("{masc}:heard", {f"w{i}": 1 for i in range(99)})
    async with RedisQueue(redis_url, LIMITS) as front:
        assert [one.worker_id for one in await front.workers()] == ["w99"]
