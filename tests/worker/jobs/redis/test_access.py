"""What a user of Redis may do, and two services that share one Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib import resources

import pytest
import redis

from masc_core.errors import ConfigError, QueueDownError, QueueFullError
from tests.redis_server import RedisServer
from tests.worker.jobs.samples import claim, job, result, submit
from worker.jobs.connect import connect
from worker.jobs.job import Idempotency, Progress
from worker.jobs.queue import REQUEUE, QueueLimits, WorkerStatus
from worker.jobs.redis.client import COMMAND, Argument, QueueNamespace, ScriptRunner, load_script
from worker.jobs.redis.connection import connect_blocking
from worker.jobs.redis.queue import RedisQueue

pytestmark = pytest.mark.anyio

LIMITS = QueueLimits()
RULES = ("~{masc}:*", "&{masc}:*", "+@all", "-@admin", "-@dangerous")  # as docs/redis.md


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
        queue.report([(leases[0], Progress(0, 1, 8))])
        queue.report([(lease, REQUEUE) for lease in leases[2:]])
        assert queue.report([(leases[0], result())]) == [True]
        assert await queue.outcome(sent.id) == result()
        await queue.cancel(leases[1].job_id)
        await queue.forget(leases[1].job_id)
        assert len(await queue.workers()) == 1
        queue.remove_worker("a")
        assert (await queue.stats()).depth == 1
        await asyncio.to_thread(queue.close)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_server_that_tells_nothing_of_itself_may_evict(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    connect(url_of(server, *RULES), LIMITS)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "see that it evicts nothing" in caplog.text
    caplog.clear()
    connect(url_of(server, *RULES, "+info"), LIMITS)
    assert "keeps no append-only file" in caplog.text


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        (("resetkeys", "~masc:*"), "permissions to access"),
        (("resetchannels",), "PUBLISH, SUBSCRIBE"),
        (("resetchannels", "&masc:*"), "PUBLISH, SUBSCRIBE"),
        (("-zadd",), "ZADD"),
        (("-subscribe",), "SUBSCRIBE"),
        (("-eval",), "eval"),
        (("-select",), "select"),
        (("-client",), "client"),
    ],
)
def test_a_user_who_may_not_do_all_is_an_error_of_one_line(
    server: RedisServer, rules: tuple[str, ...], named: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        connect(url_of(server, *RULES, *rules) + "/2", LIMITS)
    message = str(refusal.value)
    needed = "~{masc}:* &{masc}:2:* +@all -@admin -@dangerous"
    assert message.startswith(f"MASC_QUEUE_URL: Redis' user needs {needed}: NOPERM ")
    assert named in message
    assert "\n" not in message
    assert "hush" not in message


SCRIPTS: dict[str, tuple[Argument, ...]] = {
    "announce": ("w", b"status"),
    "cancel": ("{live}", "cancelled"),
    "cancel_all": ("ann", "batch/ann", "", "{live}"),
    "check_leases": ("{live}", 1),
    "claim": ("tiny", 8, "w", "", 0),
    "count_request": ("ann", 1),
    "count_unreadable": (),
    "forget": ("{ended}",),
    "get_result": ("{live}", "front", 1, 8),
    "live_jobs": (),
    "remove_worker": ("w",),
    "renew": ("{live}", 1),
    "report": (100, "{live}", 1, "event", b"e", 0, "{live}", 1, "ok", b"outcome", 0),
    "quarantine": ("{live}",),
    "stats": (),
    "status": ("{live}",),
    "submit": (
        *("new", b"job", "tiny", 1, "ann", 60_000, 0, 1, "3:ann:k", "print", 9),
        *("interactive", 1000),
    ),
    "workers": (),
}


def what_is_there(inside: redis.Redis) -> dict[str, object]:
    """Every key and its value."""
    return {str(name): inside.dump(str(name)) for name in inside.scan_iter()}


@pytest.mark.parametrize("script", SCRIPTS)
async def test_a_script_that_may_not_do_all_does_nothing(script: str, server: RedisServer) -> None:
    folder = resources.files("worker.jobs.redis") / "scripts"
    no_calls = {"keys", "common", "check_access"}
    assert SCRIPTS.keys() | no_calls == {file.name[:-4] for file in folder.iterdir()}
    with server.client() as inside, server.client(encoding="latin-1") as raw:
        inside.flushall()
        url = url_of(server, *RULES)
        calls = ScriptRunner(connect_blocking(url), QueueNamespace.of(LIMITS, 0))
        async with RedisQueue(server.url, LIMITS) as front:
            ended, live, late, lost, kept = (job(owner="ann", keep=i > 0) for i in range(5))
            await submit(front, ended, live, late, lost, kept)
            leases = {lease.job_id: lease for lease in claim(front)}
            assert front.report([(leases[ended.id], result())]) == [True]
            assert front.report([(leases[kept.id], result())]) == [True]
            front.announce(WorkerStatus("w", ready=True))
        # The front is closed: its own calls would end what has no time left.
        inside.zadd("{masc}:deadlines", {late.id: 1})
        inside.zadd("{masc}:leases", {lost.id: 1})
        before = what_is_there(raw)
        commands = set(COMMAND.findall(load_script(script).text))
        refused = [(f"-{name.lower()}",) for name in sorted(commands)]
        arguments: list[Argument] = [
            one.format(live=live.id, ended=ended.id) if isinstance(one, str) else one
            for one in SCRIPTS[script]
        ]
        for rules in [*refused, ("resetchannels",), ("resetkeys", "%R~{masc}:*")]:
            url_of(server, *RULES, *rules)
            with pytest.raises(QueueDownError):
                calls.run(script, *arguments)
            assert what_is_there(raw) == before, rules
        url_of(server, *RULES)
        calls.run(script, *arguments)
        assert what_is_there(raw) != before
        async with RedisQueue(server.url, LIMITS) as front:
            totals = (await front.stats()).totals
        assert totals.ended["expired"] == totals.redelivered["lease_expired"] == 1


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
