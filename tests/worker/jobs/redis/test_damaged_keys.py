"""Keys that hold something else than they should: set aside, mended, and nobody stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import redis

from masc_core.errors import CapacityError, ResultGoneError, UnknownJobError
from tests.worker.jobs.redis.conftest import MakeWorker, check_sums
from tests.worker.jobs.samples import claim, collect, job, jobs_of, result, submit, until
from worker.jobs.job import Idempotency, NumberedEvent, Progress
from worker.jobs.outcome import JobFailure
from worker.jobs.priority import PRIORITIES, Priority
from worker.jobs.queue import REQUEUE, QueueLimits, WorkerStatus
from worker.jobs.redis.queue import RedisQueue

pytestmark = pytest.mark.anyio

LIMITS = QueueLimits()
READY = WorkerStatus("a", ready=True)
LISTS: tuple[str, ...] = ("deadlines", "leases", "models", "owners:tiny", "waiting:tiny")
LISTS += ("finish:tiny", "submitted:interactive:tiny")
KEYS = (*LISTS, "virtual", "results", "totals", "ended", "drained:tiny", "dead", "workers", "heard")
NEAR_THE_END = [str(one) for one in (24 * 10**13, 5 * 10**14 - 2, 10**15 - 2, 2**53, 2**63 - 1)]
PLANTS: dict[str, Callable[[redis.Redis, str], object]] = {
    "string": lambda inside, name: inside.set(name, "what is this"),
    "hash": lambda inside, name: inside.hset(name, "what", "is this"),
    "list": lambda inside, name: inside.rpush(name, "what", "is this"),
    "stream": lambda inside, name: inside.xadd(name, {"what": "is this"}, "9-9"),
}


def plant(inside: redis.Redis, names: tuple[str, ...], kind: str) -> list[bool]:
    """Put something of a kind where it does not belong, all at once; false where it would."""
    is_wrong = [inside.type("{masc}:" + name) != kind for name in names]
    with inside.pipeline(transaction=True) as together:  # the workers' own calls go on meanwhile
        for name in names:
            together.delete("{masc}:" + name)
            PLANTS[kind](together, "{masc}:" + name)
        together.execute()
    return is_wrong


@pytest.mark.parametrize("kind", PLANTS)
@pytest.mark.parametrize(
    "names",
    [*((name,) for name in KEYS), LISTS[1:], LISTS[3:], ("waiting:tiny", "results", "totals")],
    ids="+".join,
)
async def test_all_goes_on_without_what_lists_the_jobs(
    names: tuple[str, ...],
    kind: str,
    redis_url: str,
    make_worker: MakeWorker,
    inside: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = make_worker(LIMITS)
    async with RedisQueue(redis_url, LIMITS) as front:
        jobs = [job(owner="ann", keep=True) for _ in range(6)]
        await submit(front, *jobs[:5])
        done, running = claim(worker, 2)
        assert worker.report([(done, result())]) == [True]
        worker.announce(READY)
        is_wrong = plant(inside, names, kind)
        await front.stats()
        stats = await front.stats()  # the first one may have mended it
        if all(is_wrong):
            assert (stats.depth, stats.running) == (3, 1)
        worker.announce(READY)
        front._worker_list.has_changed()
        assert await front.workers() == (READY,)
        await submit(front, jobs[5])
        assert [(await front.status(one.id)).position for one in jobs[2:]] == [0, 1, 2, 3]
        worker.renew([running])
        assert worker.lost_leases([running]) == set()
        leases = [running, *claim(worker)]
        assert jobs_of(leases) == jobs[1:]
        for lease in leases:
            assert worker.report([(lease, result())]) == [True]
        assert [await front.outcome(one.id) for one in jobs] == [result()] * 6
        totals = (await front.stats()).totals
        if all(is_wrong):  # else all that was there has been deleted by hand
            assert totals.accepted == sum(totals.ended.values())
            check_sums(inside)
        for name in (name for name, wrong in zip(names, is_wrong, strict=True) if wrong):
            if name != "dead":  # at which nobody looks
                assert inside.exists("{masc}:unreadable:" + name)
                line = f"{{masc}}:{name} cannot be read"
                await until(lambda line=line: caplog.text.count(line) == 1)  # type: ignore[misc]


@pytest.mark.parametrize("kind", PLANTS)
@pytest.mark.parametrize("place", ["outcome", "events", "watch", "key", "limit", "job"])
@pytest.mark.parametrize("when", ["waiting", "running", "ended"])
async def test_no_key_of_a_job_stops_it_or_others(
    place: str,
    kind: str,
    when: str,
    redis_url: str,
    make_worker: MakeWorker,
    inside: redis.Redis,
) -> None:
    worker = make_worker(LIMITS)
    async with RedisQueue(redis_url, LIMITS) as front:
        sent, other = job(keep=True, idempotency=Idempotency("k", "print")), job(keep=True)
        await submit(front, sent, other)
        leases = claim(worker) if when != "waiting" else []
        if when == "ended":
            worker.report([(leases[0], Progress(0, 1, 8)), (leases.pop(0), result())])
        name = {"key": "key:0::k", "limit": "limit:1:ann"}.get(place, f"{place}:{sent.id}")
        plant(inside, (name,), kind)
        assert [await front.count_request("ann", 1) > 0 for _ in range(2)] == [False, True]
        assert inside.pttl("{masc}:limit:1:ann") > 0
        for lease in leases or claim(worker):
            worker.report([(lease, Progress(0, 1, 8)), (lease, result())])
        again = await front.submit(job(idempotency=Idempotency("k", "print")))
        assert again.is_new == (place in {"key", "job"})
        await front.cancel(again.job_id)
        assert await asyncio.wait_for(front.outcome(other.id), 5.0) == result()
        if (place, when) == ("job", "ended"):
            with pytest.raises(UnknownJobError):
                await front.outcome(sent.id)
        elif (place, when) == ("outcome", "ended"):
            with pytest.raises((ResultGoneError, CapacityError)):
                await front.outcome(sent.id)
            await front.cancel(sent.id)
            inside.delete("{masc}:outcome:" + sent.id)  # a string would have been one
            with pytest.raises(ResultGoneError):
                await front.outcome(sent.id)
        else:
            outcome = await asyncio.wait_for(front.outcome(sent.id), 5.0)
            assert isinstance(outcome, JobFailure) if place == "job" else outcome == result()
            is_lost = place == "job" or (place, when) == ("events", "ended")
            events = [] if is_lost else [NumberedEvent(1, Progress(0, 1, 8))]
            assert await collect(front, sent.id) == events
        totals = (await front.stats()).totals
        assert totals.accepted == sum(totals.ended.values())
        check_sums(inside)


async def test_nothing_is_lost_for_good_that_somebody_deletes(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    worker = make_worker(LIMITS)
    async with RedisQueue(redis_url, LIMITS) as front:
        jobs = [job(keep=True) for _ in range(3)]
        await submit(front, *jobs)
        (running,) = claim(worker, 1)
        inside.delete("{masc}:deadlines", "{masc}:leases", "{masc}:models", "{masc}:waiting:tiny")
        waiting = [asyncio.create_task(front.outcome(one.id)) for one in jobs]
        await until(lambda: inside.zcard("{masc}:deadlines") == 3)
        assert inside.zrange("{masc}:leases", 0, -1) == [running.job_id]
        for lease in (running, *claim(worker)):
            assert worker.report([(lease, result())]) == [True]
        assert await asyncio.wait_for(asyncio.gather(*waiting), 5.0) == [result()] * 3
        check_sums(inside)


async def test_a_look_at_a_job_changes_none_of_the_lists(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    def num_writes() -> int:
        counts = inside.info("commandstats")
        return sum(counts.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("zadd", "hset"))

    async with RedisQueue(redis_url, LIMITS) as front:
        waiting, running = job(), job()
        await submit(front, running, waiting)
        claim(make_worker(LIMITS), 1)
        states = [(await front.status(one.id)).state for one in (waiting, running)]
        assert states == ["waiting", "running"]
        before = num_writes(), inside.info("commandstats")["cmdstat_sadd"]["calls"]
        for _ in range(5):
            for one in (waiting, running):
                await front.status(one.id)
                await front._get_result(one.id)
        # Only the front end is noted as a watcher.
        assert num_writes() == before[0]
        assert inside.info("commandstats")["cmdstat_sadd"]["calls"] == before[1] + 10
        inside.delete("{masc}:models")
        await front.status(waiting.id)
        assert inside.smembers("{masc}:models") == {"tiny"}


@pytest.mark.parametrize("priority", PRIORITIES)
@pytest.mark.parametrize("time", ["0", "-7", "999999999999999", *NEAR_THE_END, "ten", None])
async def test_the_order_of_jobs_outlasts_a_time_that_is_lost(
    time: str | None,
    priority: Priority,
    redis_url: str,
    make_worker: MakeWorker,
    inside: redis.Redis,
) -> None:
    async with RedisQueue(redis_url, LIMITS) as front:
        jobs = [job(priority=priority) for _ in range(40)]
        await submit(front, *jobs[:30])
        first = claim(make_worker(LIMITS), 5)
        if time is None:
            inside.delete("{masc}:virtual")
        else:
            inside.hset("{masc}:virtual", f"{priority}:tiny", time)
        await submit(front, *jobs[30:])
        worker = make_worker(LIMITS)
        worker.report([(lease, REQUEUE) for lease in first])
        assert [(await front.status(one.id)).position for one in jobs] == list(range(40))
        assert jobs_of(claim(worker)) == jobs
        await submit(front, *(job(owner=one, priority=priority) for one in ("", "", "ann")))
        turns = [claim(worker, 1)[0].job.owner for _ in range(3)]
        assert turns in (["", "ann", ""], ["ann", "", ""])  # nobody is behind for long


@pytest.mark.parametrize("names", [("finish:tiny",), ("finish:tiny", "virtual")], ids="+".join)
async def test_owners_keep_their_turns_where_their_lines_are_deleted(
    names: tuple[str, ...], redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    async with RedisQueue(redis_url, LIMITS) as front:
        await submit(front, *(job(owner=one) for one in "ab" for _ in range(3)))
        inside.delete(*("{masc}:" + name for name in names))
        await submit(front, job(owner="a"))
        assert [lease.job.owner for lease in claim(make_worker(LIMITS))] == list("abababa")


async def test_numbers_of_a_job_may_be_as_large_as_a_double_holds(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    worker = make_worker(LIMITS)
    token = 2**53 - 2
    async with RedisQueue(redis_url, LIMITS) as front:
        sent = job(keep=True)
        await submit(front, sent)
        name = "{masc}:job:" + sent.id
        inside.hset(name, mapping={"token": token, "events": 10**15, "seq": 10**15})
        (lease,) = claim(worker)
        assert lease.token == token + 1
        worker.report([(lease, Progress(0, 1, 8))])
        assert await anext(front.events(sent.id)) == NumberedEvent(10**15 + 1, Progress(0, 1, 8))
        await front.cancel(sent.id)
        await until(lambda: worker.lost_leases([lease]) == {sent.id})
        assert (await front.stats()).totals.unreadable == 0


async def test_a_job_that_only_the_line_knows_ends_with_its_record(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    worker = make_worker(LIMITS)
    async with RedisQueue(redis_url, LIMITS) as front:
        jobs = [job(keep=True) for _ in range(2)]
        await submit(front, *jobs)
        for name in ("deadlines", f"job:{jobs[0].id}"):
            plant(inside, (name,), "string")
        await front.stats()
        assert isinstance(await front.outcome(jobs[0].id), JobFailure)
        assert worker.report([(claim(worker)[0], result())]) == [True]
        totals = (await front.stats()).totals
        assert (totals.accepted, totals.ended) == (2, {"ok": 1, "error": 1})
        check_sums(inside)
