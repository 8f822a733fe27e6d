"""A master is lost or replaced, below Sentinels and in a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import redis
from redis.crc import key_slot

from masc_core.errors import ConfigError, QueueDownError
from tests.redis_server import RedisCluster, RedisServer, Sentinels
from tests.worker.jobs.samples import claim, job, jobs_of, result, submit, until
from worker.jobs.connect import connect
from worker.jobs.queue import QueueLimits, WorkerStatus
from worker.jobs.redis.queue import RedisQueue

pytestmark = pytest.mark.anyio

LIMITS = QueueLimits(lease_seconds=60.0)
READY_SECONDS = 10.0  # that a failover may take
SECRET, SENTINELS_SECRET = "hush/@", "whisper+ &"


@dataclass(frozen=True)
class Fleet:
    """Servers of which one takes another's place."""

    url: str
    master: RedisServer
    replica: RedisServer
    password: str | None
    switch_over: Callable[[], None]  # changes the two, of which both go on

    def inside(self, server: RedisServer) -> redis.Redis:
        return server.client(password=self.password)

    def replicate(self) -> None:
        """Wait until the replica has everything."""
        with self.inside(self.master) as client:
            assert client.wait(1, 5000) == 1


@pytest.fixture
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    def ask(server: RedisServer, command: str, password: str | None = None) -> None:
        with server.client(password=password) as client:
            client.execute_command(command)

    if request.param == "sentinel":
        with Sentinels(SECRET, SENTINELS_SECRET) as group:
            command = f"SENTINEL FAILOVER {group.NAME}"
            switch_over = partial(ask, group.sentinels[0], command, SENTINELS_SECRET)
            yield Fleet(group.url, group.master, group.replica, SECRET, switch_over)
    else:
        with RedisCluster() as cluster:
            switch_over = partial(ask, cluster.replica, "CLUSTER FAILOVER")
            yield Fleet(cluster.url, cluster.master, cluster.replica, None, switch_over)


@contextlib.asynccontextmanager
async def queue_of(fleet: Fleet) -> AsyncIterator[RedisQueue]:
    queue = await asyncio.to_thread(RedisQueue, fleet.url, LIMITS)
    async with queue:
        yield queue


async def serves_again(queue: RedisQueue) -> None:
    """Wait until both sides reach the new master."""
    began = time.monotonic()
    while True:
        try:
            await queue.stats()
            await asyncio.to_thread(queue.announce, WorkerStatus("w", ready=True))
        except QueueDownError:
            assert time.monotonic() - began < READY_SECONDS
            await asyncio.sleep(0.05)
        else:
            return


@pytest.mark.parametrize("fleet", ["sentinel", "cluster"], indirect=True)
async def test_what_the_replica_had_goes_on_when_the_master_is_lost(fleet: Fleet) -> None:
    async with queue_of(fleet) as queue:
        running, waiting = (job(keep=True) for _ in range(2))
        await submit(queue, running, waiting)
        (lease,) = claim(queue, 1)
        outcome = asyncio.create_task(queue.outcome(running.id))
        await until(lambda: running.id in queue._watchers.watched)
        fleet.replicate()
        fleet.master.kill()
        await serves_again(queue)
        assert queue.report([(lease, result())]) == [True]
        assert await asyncio.wait_for(outcome, 5.0) == result()
        assert jobs_of(claim(queue)) == [waiting]
        totals = (await queue.stats()).totals
        assert (totals.accepted, totals.ended) == (2, {"ok": 1})


# Sentinels take ten seconds to tell the old master.
@pytest.mark.parametrize(
    "fleet", [pytest.param("sentinel", marks=pytest.mark.slow), "cluster"], indirect=True
)
async def test_a_master_that_lives_on_as_a_replica_is_left(fleet: Fleet) -> None:
    async with queue_of(fleet) as queue:
        heard: list[str] = []
        queue.on_arrival(heard.append)
        sent = job(keep=True)
        await submit(queue, sent)
        (lease,) = claim(queue)
        await until(lambda: heard == [""])
        with fleet.inside(fleet.master) as old:
            until_again = 0.0
            while old.info("replication")["role"] == "master":
                if time.monotonic() > until_again:  # a cluster gives up one that takes too long
                    until_again = time.monotonic() + 3 * READY_SECONDS
                    fleet.switch_over()
                await asyncio.sleep(0.02)
        await serves_again(queue)
        assert queue.report([(lease, result())]) == [True]
        await until(lambda: heard.count("") > 1)  # its subscription has followed
        assert claim(queue) == []
        await submit(queue, job())
        await until(lambda: heard[-1] == "tiny")
        assert await asyncio.wait_for(queue.outcome(sent.id), 5.0) == result()


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as cluster:
        yield cluster


async def test_a_queue_whose_slot_moves_is_away_until_it_has_moved(cluster: RedisCluster) -> None:
    slot = key_slot(b"{masc}:")
    target = next(node for node in cluster.nodes[:3] if node is not cluster.master)
    async with await asyncio.to_thread(RedisQueue, cluster.url, LIMITS) as queue:
        sent = job(keep=True)
        await submit(queue, sent)
        with cluster.master.client() as old, target.client() as new:
            ids = [client.execute_command("CLUSTER MYID") for client in (old, new)]
            new.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[0])
            old.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[1])
            keys = old.execute_command("CLUSTER GETKEYSINSLOT", slot, 100)
            for key in keys:
                with pytest.raises(QueueDownError):  # no script sees half of the keys
                    await queue.submit(job())
                old.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
            for client in (new, old):
                client.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[1])
        await serves_again(queue)
        assert jobs_of(claim(queue)) == [sent]
        assert (await queue.stats()).totals.accepted == 1


def test_a_cluster_is_no_single_server(cluster: RedisCluster) -> None:
    for node in cluster.nodes:
        with pytest.raises(ConfigError, match=r"begins with redis\+cluster://"):
            connect(node.url, LIMITS)
        with pytest.raises(ConfigError, match="no other database than 0"):
            connect(f"redis+cluster://127.0.0.1:{node.port}/1", LIMITS)
    for name in ("red", "blue"):  # prefixes on different nodes
        connect(cluster.url, LIMITS, name)


def test_sentinels_that_cannot_help_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with Sentinels(SECRET, SENTINELS_SECRET) as group:
        connect(group.url.replace(f"/{group.NAME}/", "/pictures/"), LIMITS)
        connect(group.url.replace("sentinel_password=whisper", "sentinel_password=shout"), LIMITS)
        with pytest.raises(ConfigError, match="refuses the user or the password"):
            connect(group.url.replace("hush", "hash"), LIMITS)
    unknown, refused = (record.getMessage() for record in caplog.records)
    assert "none of 3 servers knows the master 'pictures'" in unknown
    assert "knows the master 'images'; invalid username-password pair" in refused
    assert "hush" not in caplog.text
    assert "whisper" not in caplog.text


async def test_sentinels_need_to_allow_two_commands() -> None:
    rules = (
        "on",
        ">quiet",
        "+sentinel|get-master-addr-by-name",
        "+client|setname",
    )  # as docs/redis.md
    with Sentinels() as group:
        for sentinel in group.sentinels:
            with sentinel.client() as client:
                client.execute_command("ACL SETUSER", "ann", *rules)
        url = f"{group.url}?sentinel_username=ann&sentinel_password=quiet"
        async with await asyncio.to_thread(RedisQueue, url, LIMITS) as queue:
            assert (await queue.stats()).depth == 0
