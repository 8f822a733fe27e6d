"""What a front end asks of Redis while it is away or hangs, and what is left when it ends."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from masc_core.errors import QueueDownError
from tests.redis_server import RedisServer
from tests.stopwatch import Stopwatch
from tests.worker.jobs.redis.test_outages import Door, served_again
from tests.worker.jobs.samples import job, submit, until
from worker.jobs.queue import QueueLimits
from worker.jobs.redis.connection import RETRY_SECONDS
from worker.jobs.redis.queue import RedisQueue

pytestmark = pytest.mark.anyio

LIMITS = QueueLimits()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


async def test_whoever_waits_when_a_front_end_ends_stops_at_once(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = asyncio.all_tasks()
    async with RedisQueue(server.url, LIMITS) as front:
        sent = job()
        await submit(front, sent)
        server.hang()
        asking = (front.stats(), front.workers(), front.outcome(sent.id))
        waiting = [asyncio.create_task(one) for one in asking]
        await until(lambda: sent.id in front._watchers.watched)
    ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(end) for end in ends] == [asyncio.CancelledError] * 3
    assert asyncio.all_tasks() == tasks
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_a_list_of_workers_that_nobody_waits_for_any_more_may_fail(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with RedisQueue(server.url, LIMITS) as front:
        server.hang()
        leaving = asyncio.create_task(front.workers())
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(QueueDownError):
            await front.stats()  # asked later, so refused later
        server.go_on()
    del front, leaving
    gc.collect()  # which tells of errors that nobody has taken
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_while_redis_is_away_one_connection_looks_for_it_however_many_wait(
    server: RedisServer,
) -> None:
    async with Door(server.port) as door:
        front = await asyncio.to_thread(RedisQueue, door.url, LIMITS)
        async with front:
            jobs = [job() for _ in range(20)]
            await submit(front, *jobs)
            waiting = [asyncio.create_task(front.outcome(one.id)) for one in jobs]
            await asyncio.to_thread(server.kill)
            before = door.num_entered
            with Stopwatch() as watch:
                await asyncio.sleep(8 * RETRY_SECONDS)
            tries = door.num_entered - before
            await asyncio.to_thread(server.start)
            await served_again(front)
            for one in waiting:
                one.cancel()
    assert tries <= watch.seconds / RETRY_SECONDS + 2
