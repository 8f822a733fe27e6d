"""A Redis that is killed, hangs, comes late, or has forgotten everything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, suppress
from typing import Self

import pytest

from masc_core.errors import QueueDownError, QueueFullError, ResultGoneError, UnknownJobError
from tests.redis_server import RedisServer
from tests.stopwatch import Stopwatch
from tests.worker.jobs.samples import claim, collect, job, jobs_of, result, submit, until
from worker.jobs.job import NumberedEvent, Progress
from worker.jobs.queue import REQUEUE, QueueLimits, Totals, WorkerStatus
from worker.jobs.redis.queue import RedisQueue

pytestmark = pytest.mark.anyio

LIMITS = QueueLimits()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """One of the test's own, that remembers."""
    with RedisServer(appendonly="yes", appendfsync="everysec") as server:
        yield server


def every_call(front: RedisQueue) -> dict[str, Callable[[], Awaitable[object]]]:
    """All that is not to wait for the queue's return."""
    return {
        "submit": lambda: front.submit(job()),
        "status": lambda: front.status("x"),
        "cancel": lambda: front.cancel("x"),
        "forget": lambda: front.forget("x"),
        "stats": front.stats,
        "workers": front.workers,
    }


async def refused_in_time(call: Callable[[], Awaitable[object]]) -> None:
    with Stopwatch() as watch, pytest.raises(QueueDownError) as refusal:
        await call()
    assert watch.seconds < 1.0
    assert 1.0 <= refusal.value.retry_after <= 5.0


async def served_again(front: RedisQueue) -> None:
    """Wait until the front end reaches its queue."""
    async with asyncio.timeout(5.0):
        while True:
            try:
                await front.stats()
            except QueueDownError:
                await asyncio.sleep(0.02)
            else:
                return


async def test_a_killed_redis_loses_no_job_and_nobody_stops_waiting(server: RedisServer) -> None:
    with closing(RedisQueue(server.url, LIMITS)) as worker:
        async with RedisQueue(server.url, LIMITS) as front:
            jobs = [job(keep=True) for _ in range(12)]
            await submit(front, *jobs)
            done, running = claim(worker, 2), claim(worker, 4)
            for lease in done:
                assert worker.report([(lease, result(lease.job_id))]) == [True]
            worker.report([(running[0], Progress(0, 1, 8))])
            outcomes = [asyncio.create_task(front.outcome(one.id)) for one in jobs]
            events = asyncio.create_task(collect(front, running[0].job_id))
            await asyncio.gather(*outcomes[:2])
            server.kill()
            for call in every_call(front).values():
                await refused_in_time(call)
            with pytest.raises(QueueDownError):
                claim(worker)
            assert not any(task.done() for task in [*outcomes[2:], events])
            server.start()
            await served_again(front)
            worker.renew(running)
            assert worker.lost_leases(running) == set()
            waiting = claim(worker)
            assert jobs_of(waiting) == jobs[6:]
            worker.report([(running[0], Progress(0, 2, 8))])
            for lease in [*running, *waiting]:
                assert worker.report([(lease, result(lease.job_id))]) == [True]
            async with asyncio.timeout(5.0):
                assert await asyncio.gather(*outcomes) == [result(one.id) for one in jobs]
                numbered = [NumberedEvent(n, Progress(0, n, 8)) for n in (1, 2)]
                assert await events == numbered
            assert (await front.stats()).totals == Totals(12, {"ok": 12})


async def test_a_hanging_redis_is_reported_within_a_second(server: RedisServer) -> None:
    with closing(RedisQueue(server.url, LIMITS)) as worker:
        async with RedisQueue(server.url, LIMITS) as front:
            sent = job()
            await submit(front, sent)
            leases = claim(worker)
            outcome = asyncio.create_task(front.outcome(sent.id))
            await asyncio.sleep(0.05)
            server.hang()
            await asyncio.gather(*map(refused_in_time, every_call(front).values()))
            await asyncio.gather(*(refused_in_time(front.workers) for _ in range(8)))
            server.go_on()
            await served_again(front)
            assert worker.report([(leases[0], result())]) == [True]
            assert await asyncio.wait_for(outcome, 5.0) == result()


async def test_a_worker_does_not_wait_for_a_hanging_redis(server: RedisServer) -> None:
    with closing(RedisQueue(server.url, LIMITS)) as worker:
        assert claim(worker) == []
        server.hang()
        started = time.monotonic()
        with pytest.raises(QueueDownError):
            claim(worker)
        assert time.monotonic() - started < 4.0
        server.go_on()


async def test_a_wait_that_begins_during_an_outage_ends_after_it(server: RedisServer) -> None:
    with closing(RedisQueue(server.url, LIMITS)) as worker:
        async with RedisQueue(server.url, LIMITS) as front:
            sent = job(keep=True)
            await submit(front, sent)
            server.kill()
            outcome = asyncio.create_task(front.outcome(sent.id))
            events = asyncio.create_task(collect(front, sent.id))
            await asyncio.sleep(0.3)
            assert not outcome.done()
            server.start()
            await served_again(front)
            assert worker.report([(claim(worker)[0], result())]) == [True]
            assert await asyncio.wait_for(outcome, 5.0) == result()
            assert await asyncio.wait_for(events, 5.0) == []


async def test_a_queue_that_is_away_at_the_start_may_come(server: RedisServer) -> None:
    server.kill()
    with closing(RedisQueue(server.url, LIMITS)) as worker:
        with pytest.raises(QueueDownError):
            claim(worker)
        async with RedisQueue(server.url, LIMITS) as front:
            await refused_in_time(front.stats)
            server.start()
            await served_again(front)
            await submit(front, job())
            assert len(claim(worker)) == 1


async def test_a_restart_between_two_calls_is_not_noticed(server: RedisServer) -> None:
    with closing(RedisQueue(server.url, LIMITS)) as worker:
        async with RedisQueue(server.url, LIMITS) as front:
            await front.stats()
            assert claim(worker) == []
            server.kill()
            server.start()
            await asyncio.sleep(0.05)  # a loop that was not blocked would have seen it
            sent = job()
            await submit(front, sent)
            (lease,) = claim(worker)
            assert worker.report([(lease, result())]) == [True]
            assert await front.outcome(sent.id) == result()


async def test_a_worker_hears_of_news_after_an_outage(server: RedisServer) -> None:
    with closing(RedisQueue(server.url, LIMITS)) as worker:
        async with RedisQueue(server.url, LIMITS) as front:
            assert claim(worker) == []
            lost = job()
            await submit(front, lost)
            leases = claim(worker)
            server.kill()
            server.start()
            await asyncio.sleep(0.05)
            await front.cancel(lost.id)  # most likely before the worker listens again
            await until(lambda: worker.lost_leases(leases) == {lost.id})
            claiming = asyncio.create_task(asyncio.to_thread(worker.claim, "tiny", 1, 30.0))
            sent = job()
            await submit(front, sent)
            (lease,) = await asyncio.wait_for(claiming, 5.0)
            await front.cancel(sent.id)
            await until(lambda: worker.lost_leases([lease]) == {sent.id})


class Relay:
    """A way to a server on which connections can go dead: open, and silent."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._dead: list[asyncio.Event] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._relaying: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.wait_for(asyncio.gather(*self._relaying), 5.0)

    def go_dead(self) -> None:
        """Every connection that there is."""
        for dead in self._dead:
            dead.set()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, back]
        dead = asyncio.Event()
        self._dead.append(dead)
        for way in (self._pass_on(reader, back, dead), self._pass_on(there, writer, dead)):
            self._relaying.append(asyncio.ensure_future(way))

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dead: asyncio.Event
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if not dead.is_set():
                    writer.write(data)


async def test_a_connection_that_is_dead_but_open_is_made_anew(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in (
        ("pubsub", "SILENCE_SECONDS"),
        ("connection", "ANSWER_SECONDS"),
    ):
        monkeypatch.setattr(f"worker.jobs.redis.{module}.{name}", 0.2)
    async with Relay(server.port) as relay:
        worker = await asyncio.to_thread(RedisQueue, relay.url, LIMITS)
        async with RedisQueue(server.url, LIMITS) as near, worker:
            jobs = [job(keep=True) for _ in range(2)]
            await submit(near, *jobs)
            leases = await asyncio.to_thread(claim, worker)
            outcome = asyncio.create_task(worker.outcome(jobs[0].id))
            await until(lambda: jobs[0].id in worker._watchers.watched)
            await asyncio.sleep(0.1)
            relay.go_dead()
            near.report([(leases[0], result())])
            await near.cancel(jobs[1].id)
            assert await asyncio.wait_for(outcome, 5.0) == result()
            await until(lambda: worker.lost_leases(leases[1:]) == {jobs[1].id})
            await asyncio.to_thread(worker.close)


async def test_a_redis_that_has_forgotten_everything_begins_anew(server: RedisServer) -> None:
    with closing(RedisQueue(server.url, LIMITS)) as worker:
        async with RedisQueue(server.url, LIMITS) as front:
            sent = job()
            await submit(front, sent, job())
            leases = claim(worker, 1)
            outcome = asyncio.create_task(front.outcome(sent.id))
            await asyncio.sleep(0.05)
            with server.client() as inside:
                inside.flushall()
                inside.script_flush()
            worker.renew(leases)
            assert worker.lost_leases(leases) == {sent.id}
            assert worker.report([(leases[0], result())]) == [False]
            worker.announce(WorkerStatus("a", ready=True))
            again = job()
            await submit(front, again)
            (lease,) = claim(worker)
            assert lease.job == again
            assert worker.report([(lease, result())]) == [True]
            assert await front.outcome(again.id) == result()
            assert (await front.stats()).totals == Totals(1, {"ok": 1}, fenced=1)
            front._watchers.notify_all()
            with pytest.raises(UnknownJobError):
                await asyncio.wait_for(outcome, 5.0)


async def test_a_full_redis_takes_no_more_but_loses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = QueueLimits(max_jobs=100_000)
    with (
        RedisServer(maxmemory="3mb") as server,
        closing(RedisQueue(server.url, limits)) as worker,
    ):
        async with RedisQueue(server.url, limits) as front:
            accepted = []
            with pytest.raises(QueueFullError):  # noqa: PT012 - until it is
                while True:
                    accepted.append(job(owner="x" * 1000))
                    await front.submit(accepted[-1])
            accepted.pop()
            leases = claim(worker, len(accepted))
            assert jobs_of(leases) == accepted
            worker.announce(WorkerStatus("a", ready=True))
            worker.renew(leases)
            assert worker.lost_leases(leases) == set()
            assert len(await front.workers()) == 1
            assert (await front.status(accepted[0].id)).state == "running"
            assert await front.count_request("ann", 1) == 0
            await front.cancel(accepted[0].id)
            worker.report([(leases[1], Progress(0, 1, 8))])
            assert await asyncio.to_thread(worker.report, [(leases[1], result())]) == [True]
            assert await front.outcome(accepted[1].id) == result()
            worker.report([(lease, REQUEUE) for lease in leases[2:]])
            totals = (await front.stats()).totals
            assert totals.ended == {"cancelled": 1, "ok": 1}
            assert totals.redelivered == {"handed_back": len(accepted) - 2}
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_kept_results_have_a_bound_that_no_client_gets_beyond(server: RedisServer) -> None:
    limits = QueueLimits(max_result_bytes=1_000_000)
    big = result("x" * 100_000)
    with closing(RedisQueue(server.url, limits)) as worker, server.client() as inside:
        async with RedisQueue(server.url, limits) as front:
            jobs = [job(keep=True) for _ in range(40)]
            for one in jobs:
                await submit(front, one)
                assert worker.report([(claim(worker)[0], big)]) == [True]
            for one in jobs[:30]:
                with pytest.raises(ResultGoneError):
                    await front.outcome(one.id)
            assert [await front.outcome(one.id) for one in jobs[-9:]] == [big] * 9
            kept = [inside.strlen(str(name)) for name in inside.scan_iter("{masc}:outcome:*")]
            assert sum(kept) <= limits.max_result_bytes
            assert int(inside.hget("{masc}:totals", "result_bytes") or 0) == sum(kept)
            assert (await front.stats()).totals.results_dropped == len(jobs) - len(kept)


async def test_once_a_call_has_failed_nobody_counts_as_ready(server: RedisServer) -> None:
    worker = await asyncio.to_thread(RedisQueue, server.url, LIMITS)
    front = await asyncio.to_thread(RedisQueue, server.url, LIMITS)
    async with front, worker:
        status = WorkerStatus("w", ready=True, model="m", version="1")
        await asyncio.to_thread(worker.announce, status)
        assert await front.workers() == (status,)
        await asyncio.to_thread(server.kill)
        with pytest.raises(QueueDownError):
            await front.submit(job())
        with pytest.raises(QueueDownError):
            await front.workers()
        await asyncio.to_thread(worker.close)
        await asyncio.to_thread(front.close)


class Door:
    """A name of Redis: new connections go to the server that it means at the moment."""

    def __init__(self, port: int) -> None:
        self.port, self.num_entered = port, 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._relaying: set[asyncio.Future[None]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for relaying in self._relaying:
            relaying.cancel()
        await asyncio.gather(*self._relaying, return_exceptions=True)
        await asyncio.sleep(0)  # in which the transports close

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_entered += 1
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.close()
            return
        for source, target in ((reader, back), (there, writer)):
            self._relaying.add(asyncio.ensure_future(self._pass_on(source, target)))

    @staticmethod
    async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError):
                while data := await source.read(65536):
                    target.write(data)
        finally:
            target.close()


def follow(server: RedisServer, other: RedisServer) -> None:
    """Make a server the replica of another, and wait until it has its data."""
    with server.client() as inside:
        inside.replicaof("127.0.0.1", other.port)
        until = time.monotonic() + 10.0
        while inside.info("replication").get("master_link_status") != "up":
            assert time.monotonic() < until
            time.sleep(0.01)


@pytest.mark.parametrize("back", [False, True], ids=["for good", "and back"])
async def test_after_a_failover_the_name_is_looked_up_again(
    server: RedisServer, back: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer(**{"repl-diskless-sync-delay": "0"}) as other:
        async with Door(server.port) as door:
            worker = await asyncio.to_thread(RedisQueue, door.url, LIMITS)
            front = await asyncio.to_thread(RedisQueue, door.url, LIMITS)
            async with front, worker:
                sent = [job(keep=True) for _ in range(4)]
                await submit(front, *sent)
                leases = await asyncio.to_thread(claim, worker)
                waiting = [asyncio.create_task(front.outcome(one.id)) for one in sent]
                await until(lambda: len(front._watchers.watched) == 4)
                await asyncio.to_thread(follow, other, server)
                with server.client() as old, other.client() as new:
                    new.replicaof("NO", "ONE")
                    old.replicaof("127.0.0.1", other.port)  # it stays up, and answers
                    for call in every_call(front).values():
                        await refused_in_time(call)
                    with pytest.raises(QueueDownError):
                        await asyncio.to_thread(worker.renew, leases)
                    if back:
                        old.replicaof("NO", "ONE")
                    else:
                        door.port = other.port
                await served_again(front)
                await asyncio.to_thread(worker.renew, leases)
                assert worker.lost_leases(leases) == set()
                for lease in leases:
                    ended = await asyncio.to_thread(worker.report, [(lease, result(lease.job_id))])
                    assert ended == [True]
                outcomes = await asyncio.wait_for(asyncio.gather(*waiting), 7.0)
                assert outcomes == [result(one.id) for one in sent]
                assert (await front.stats()).totals == Totals(4, {"ok": 4})
                await asyncio.to_thread(worker.close)
                await asyncio.to_thread(front.close)
    assert (
        caplog.text.count("the queue is unreachable: You can't write against a read only replica")
        >= 1
    )
    assert caplog.text.count("the queue is unreachable") <= 2  # once each: front end, worker
