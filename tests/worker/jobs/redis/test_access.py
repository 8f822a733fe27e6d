"""What a user of Redis may do, and two services that share one Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from masc_core.errors import ConfigError, QueueFullError
from tests.redis_server import RedisServer
from tests.worker.jobs.samples import claim, job, result, submit
from worker.jobs.connect import connect
from worker.jobs.job import Idempotency, Progress
from worker.jobs.queue import QueueLimits, WorkerStatus
from worker.jobs.redis.queue import RedisQueue

pytestmark = pytest.mark.anyio

LIMITS = QueueLimits()
RULES = ("~{masc}:*", "&{masc}:*", "+@all", "-@admin", "-@dangerous", "+info")  # as docs/redis.md


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def url_of(server: RedisServer, *rules: str) -> str:
    """Address of a server for a user with these rules alone."""
    with server.client() as inside:
        inside.execute_command("ACL", "SETUSER", "ann", "reset", "on", ">hush", *rules)
    return f"redis://ann:hush@127.0.0.1:{server.port}"


async def test_a_user_of_the_documented_rules_can_do_everything(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    queue = await asyncio.to_thread(RedisQueue, url_of(server, *RULES), LIMITS)
    async with queue:
        sent = job(keep=True, idempotency=Idempotency("k", "print"))
        await submit(queue, sent, job(), job())
        assert [await queue.count_request("ann", 1) > 0 for _ in range(2)] == [False, True]
        leases = claim(queue)
        queue.announce(WorkerStatus("a", ready=True))
        queue.renew(leases)
        queue.emit(leases[0], Progress(0, 1, 8))
        queue.hand_back(leases[2:])
        assert queue.finish(leases[0], result())
        assert await queue.outcome(sent.id) == result()
        await queue.cancel(leases[1].job_id)
        await queue.forget(leases[1].job_id)
        assert len(await queue.workers()) == 1
        queue.remove_worker("a")
        assert (await queue.stats()).depth == 1
        await asyncio.to_thread(queue.close)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        (("resetkeys", "~masc:*"), "permissions to access"),
        (("resetchannels",), "PUBLISH, SUBSCRIBE"),
        (("resetchannels", "&masc:*"), "PUBLISH, SUBSCRIBE"),
        (("-zadd",), "ZADD"),
        (("-subscribe",), "SUBSCRIBE"),
        (("-eval",), "eval"),
        (("-info",), "INFO"),
    ],
)
def test_a_user_who_may_not_do_all_is_an_error_of_one_line(
    server: RedisServer, rules: tuple[str, ...], named: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        connect(url_of(server, *RULES, *rules), LIMITS)
    message = str(refusal.value)
    assert message.startswith("MASC_QUEUE_URL: Redis")
    assert named in message
    assert "\n" not in message
    assert "hush" not in message


async def test_services_with_prefixes_of_their_own_share_a_redis(server: RedisServer) -> None:
    url, limits = server.url, QueueLimits(max_jobs=1)
    with server.client() as inside:
        inside.flushall()
    async with RedisQueue(url, limits, "north") as north, RedisQueue(url, limits, "south") as south:
        sent = job()
        await submit(north, sent)
        with pytest.raises(QueueFullError):
            await north.submit(job())
        assert (await south.stats()).depth == 0
        assert claim(south) == []
        await submit(south, job())
        assert [lease.job for lease in claim(north)] == [sent]
        with server.client() as inside:
            prefixes = {str(name).split(":")[0] for name in inside.scan_iter()}
            assert prefixes == {"{north}", "{south}"}
            channels = [str(name) for name in inside.pubsub_channels()]
            assert channels
            assert all(name.startswith(("{north}:", "{south}:")) for name in channels)
        for queue in (north, south):
            await asyncio.to_thread(queue.close)
