"""Processes of neighbouring versions over one Redis."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from masc_core.errors import CapacityError
from tests.last_release import environment_of, unpack_sources
from tests.worker.jobs.redis import neighbour
from tests.worker.jobs.redis.conftest import MakeWorker, check_sums
from tests.worker.jobs.samples import claim, collect, job, jobs_of, result, submit
from worker.jobs.job import Job, Lease, NumberedEvent, Progress, Started
from worker.jobs.outcome import JobResult, Timings
from worker.jobs.priority import PRIORITIES
from worker.jobs.queue import REQUEUE, QueueLimits, Totals
from worker.jobs.redis.codec import encode_job, encode_with_kind
from worker.jobs.redis.queue import RedisQueue

pytestmark = pytest.mark.anyio

LIMITS = QueueLimits()
STREAM = "{masc}:stream:tiny"
ROOT = Path(__file__).resolve().parents[4]
RECORDS = ROOT / "tests" / "golden" / "queue_records"
DATES = ("deadlines", "leases", "heard", "results", "ended")  # sorted sets by time


def accept_as_before(inside: redis.Redis, sent: Job) -> None:
    """Accept a job as the version before did: with an entry in a stream, too."""
    seq, now = inside.incr("{masc}:seq"), round(1000 * time.time())
    fields: dict[str | bytes, str | bytes | int]
    fields = {
        "job": encode_job(sent),
        "model": "tiny",
        "rows": 1,
        "owner": "",
        "keep": 1,
        "key": "",
    }
    fields |= {"seq": seq, "state": "waiting", "token": 0, "deliveries": 0, "events": 0}
    fields |= {"submitted": now, "deadline": now + 60_000}
    inside.hset("{masc}:job:" + sent.id, mapping=fields)  # type: ignore[arg-type]  # invariant
    inside.zadd("{masc}:deadlines", {sent.id: now + 60_000})
    inside.sadd("{masc}:models", "tiny")
    inside.xadd(STREAM, {"job": sent.id, "rows": 1}, f"{seq}-1")
    inside.zadd("{masc}:waiting:tiny", {sent.id: seq})
    inside.hincrby("{masc}:owners:tiny", "", 1)
    inside.hincrby("{masc}:totals", "accepted", 1)


async def test_jobs_of_the_version_before_go_on(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    worker = make_worker(LIMITS)
    before = [job(keep=True) for _ in range(3)]
    for one in before:
        accept_as_before(inside, one)
    inside.xgroup_create(STREAM, "workers", "0")
    async with RedisQueue(redis_url, LIMITS) as front:
        assert [(await front.status(one.id)).position for one in before] == [0, 1, 2]
        new = job(keep=True)
        await submit(front, new)
        leases = claim(worker)
        assert jobs_of(leases) == [*before, new]
        for lease in leases:
            assert worker.report([(lease, result(lease.job_id))]) == [True]
        for one in (*before, new):
            assert await front.outcome(one.id) == result(one.id)
        assert (await front.stats()).totals == Totals(4, {"ok": 4})
    # Workers of the version before still look for it, and it goes once there can be none.
    assert 0 < inside.ttl(STREAM) <= LIMITS.tombstone_seconds


def as_of_a_newer_version(inside: redis.Redis, sent: Job, **changes: object) -> None:
    """Let a job ask for what this version does not know, besides a field that it does not."""
    fields: dict[str, Any] = msgspec.msgpack.decode(encode_job(sent))
    fields["request"] |= changes
    fields["mood"] = "fine"
    data: Any = msgspec.msgpack.encode(fields)
    inside.hset("{masc}:job:" + sent.id, "job", data)


async def test_unknown_fields_are_passed_over(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    async with RedisQueue(redis_url, LIMITS) as front:
        sent = job()
        await submit(front, sent)
        as_of_a_newer_version(inside, sent)
        assert jobs_of(claim(make_worker(LIMITS))) == [sent]
        assert (await front.status(sent.id)).job == sent


async def test_settings_of_a_completer_cross_the_queue(
    redis_url: str, make_worker: MakeWorker
) -> None:
    async with RedisQueue(redis_url, LIMITS) as front:
        wanted: dict[str, Any] = {"decoding": "complete", "code_temperature": 0.5, "code_top_k": 3}
        sent = job()
        sent = dataclasses.replace(sent, request=dataclasses.replace(sent.request, **wanted))
        await submit(front, sent)
        worker = make_worker(LIMITS)
        (lease,) = claim(worker)
        assert lease.job == sent
        made = JobResult((), "tiny", "1", "0" * 64, Timings(decode=1.0, complete=0.25))
        worker.report([(lease, made)])
        assert await front.outcome(sent.id) == made


@pytest.mark.parametrize("changes", [{"decoding": "by-ear"}, {"sharpness": 3}], ids=str)
async def test_a_job_of_a_newer_version_is_left_to_workers_that_know_it(
    changes: dict[str, object],
    redis_url: str,
    make_worker: MakeWorker,
    inside: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    old = make_worker(LIMITS)
    async with RedisQueue(redis_url, LIMITS) as front:
        jobs = [job(keep=True) for _ in range(5)]
        await submit(front, *jobs)
        for one in jobs[:3]:
            as_of_a_newer_version(inside, one, **changes)
        for _ in range(4):  # as often as it looks, it does not fail them
            assert jobs_of(claim(old, 1)) in ([jobs[3]], [jobs[4]], [])
        assert caplog.text.count("is left to workers of another version") == 3
        with pytest.raises(CapacityError, match="of a version that this server cannot read"):
            await front.status(jobs[0].id)
        totals = (await front.stats()).totals
        assert totals.redelivered == {"unreadable": 3}
        assert totals.ended == {}
        for one in jobs[:3]:  # as a newer worker reads it
            as_of_a_newer_version(inside, one)
        leases = claim(make_worker(LIMITS))
        assert jobs_of(leases) == jobs[:3]
        assert [lease.token for lease in leases] == [2, 2, 2]
        assert [(await front.status(one.id)).deliveries for one in jobs[:3]] == [1, 1, 1]


async def test_events_of_an_unknown_kind_are_left_out(
    redis_url: str,
    make_worker: MakeWorker,
    inside: redis.Redis,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = make_worker(LIMITS)
    async with RedisQueue(redis_url, LIMITS) as front:
        sent = job(keep=True)
        await submit(front, sent)
        (lease,) = claim(worker)
        newer = msgspec.msgpack.encode(("Rotated", {"degrees": 90}))
        for number, data in enumerate((newer, encode_with_kind(Progress(0, 1, 8)), newer), start=1):
            event: Any = {"event": data}
            inside.xadd("{masc}:events:" + sent.id, event, f"{number}-1")
        worker.report([(lease, result())])
        assert await collect(front, sent.id) == [NumberedEvent(2, Progress(0, 1, 8))]
        assert (await front.stats()).totals.unreadable == 1
    assert caplog.text.count("an event cannot be read") == 1


async def test_an_outcome_of_an_unknown_kind_is_left_to_front_ends_that_know_it(
    redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    worker = make_worker(LIMITS)
    async with RedisQueue(redis_url, LIMITS) as front:
        sent = job(keep=True)
        await submit(front, sent)
        worker.report([(claim(worker)[0], result())])
        newer: Any = msgspec.msgpack.encode(("Film", {"seconds": 3}))
        inside.set("{masc}:outcome:" + sent.id, newer)
        for _ in range(2):
            with pytest.raises(CapacityError) as refusal:
                await front.outcome(sent.id)
            assert refusal.value.retry_after > 0
        assert (await front.stats()).totals.unreadable == 1


def restore(inside: redis.Redis, recorded: Path) -> None:
    """Put recorded keys into Redis, as if they were of now."""
    told = json.loads(recorded.read_text())
    seconds, microseconds = inside.time()
    shift = 1000 * seconds + microseconds // 1000 - told["now"]
    for name, (kind, value) in told["keys"].items():
        match kind:
            case "hash":
                fields = _read(value)
                dates = fields.keys() & {b"deadline", b"submitted"}
                inside.hset(name, mapping=fields | {one: int(fields[one]) + shift for one in dates})
            case "zset":
                by = shift if name.removeprefix("{masc}:") in DATES else 0
                inside.zadd(name, {one: score + by for one, score in _read(value).items()})
            case "stream":
                for number, fields in value.items():
                    inside.xadd(name, _read(fields), number)
            case "set":
                inside.sadd(name, *map(bytes.fromhex, value))
            case _:
                inside.set(name, bytes.fromhex(value))


def _read(value: dict[str, Any]) -> dict[Any, Any]:
    return {
        bytes.fromhex(name): bytes.fromhex(one) if isinstance(one, str) else one
        for name, one in value.items()
    }


def with_field_more(data: bytes) -> bytes:
    """A record of this code with a field that it does not know, also inside its kind."""
    value = msgspec.msgpack.decode(data)
    (value[1] if isinstance(value, list) else value)["mood"] = "fine"
    return msgspec.msgpack.encode(value)


def make_newer(server_url: str) -> None:
    """Add a field to every job, event, outcome and announcement, a total, and a key."""
    with redis.Redis.from_url(server_url) as inside:
        for name in inside.scan_iter("{masc}:job:*"):
            data: Any = with_field_more(inside.hget(name, "job") or b"")
            inside.hset(name, mapping={"job": data, "mood": "fine"})
        inside.hset("{masc}:totals", "moods", 5)
        for name in inside.scan_iter("{masc}:events:*"):
            entries = inside.xrange(name)
            inside.delete(name)
            for number, fields in entries:
                inside.xadd(name, {"event": with_field_more(fields[b"event"]), "mood": "x"}, number)
        for name in inside.scan_iter("{masc}:outcome:*"):
            outcome = inside.get(name) or b""
            if outcome:
                inside.set(name, with_field_more(outcome), keepttl=True)
        for worker, data in inside.hgetall("{masc}:workers").items():
            inside.hset("{masc}:workers", worker, with_field_more(data))
        inside.set("{masc}:weather", "fine")


@pytest.mark.parametrize("newer", [False, True], ids=["as recorded", "with more fields"])
@pytest.mark.parametrize("recorded", sorted(RECORDS.glob("*.json")), ids=lambda path: path.stem)
async def test_records_of_other_versions_are_understood(
    recorded: Path, newer: bool, redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    restore(inside, recorded)
    if newer:
        make_newer(redis_url)
    worker = make_worker(neighbour.LIMITS)
    async with RedisQueue(redis_url, neighbour.LIMITS) as front:
        for state in neighbour.STATES:
            status = await front.status(state)
            assert (status.state, status.job.request) == (state, neighbour.job(state).request)
        assert await front.workers() == (neighbour.READY,)
        ended = Lease(neighbour.job("ok"), 1, 60.0)
        assert await front.outcome("ok") == neighbour.result(ended)
        assert await collect(front, "ok") == [
            NumberedEvent(1, Started("v1")),
            NumberedEvent(2, Progress(0, 1, 8)),
        ]
        again = await front.submit(neighbour.job("again", key="key of waiting"))
        assert (again.job_id, again.is_new) == ("waiting", False)
        running = Lease(neighbour.job("running"), 1, 60.0)
        worker.renew([running])
        leases = [running, *claim(worker)]
        assert [lease.job_id for lease in leases] == ["running", "waiting"]
        for lease in leases:
            assert worker.report([(lease, neighbour.result(lease))]) == [True]
            assert await front.outcome(lease.job_id) == neighbour.result(lease)
        totals = (await front.stats()).totals
        assert totals == Totals(4, {"ok": 3, "cancelled": 1})


def assert_still_there(now: Any, then: Any, name: str = "") -> None:
    """Hold a record to one of an earlier version, which looks for all that was there then.

    Of a request it knows no other fields, and leaves a job that has one to newer workers.
    """
    match then:
        case dict():
            if name == "request":
                assert now.keys() <= then.keys()
                then = {field: then[field] for field in now}
            for field, value in then.items():
                assert field in now, (name, field)
                assert_still_there(now[field], value, field)
        case list():
            assert len(now) == len(then), name
            for one, other in zip(now, then, strict=True):
                assert_still_there(one, other, name)
        case str() | bytes() if not then.isdigit() and name != "holder":
            assert now == then, name
        case _:
            assert type(now) is type(then), name


def decoded(value: Any) -> Any:
    """A value of a key, from hexadecimal digits; numbers of a stream's entries are none."""
    match value:
        case str():
            raw = bytes.fromhex(value)
            try:
                record = msgspec.msgpack.decode(raw)
            except msgspec.DecodeError:
                return raw
            return record if isinstance(record, dict | list) else raw
        case dict():
            return {
                name if "-" in name else bytes.fromhex(name).decode(): decoded(one)
                for name, one in value.items()
            }
        case list():
            return [decoded(one) for one in value]
    return value


@pytest.mark.parametrize("recorded", sorted(RECORDS.glob("*.json")), ids=lambda path: path.stem)
def test_earlier_versions_find_all_that_they_look_for(recorded: Path, redis_url: str) -> None:
    told = json.loads(json.dumps(asyncio.run(neighbour.record(redis_url))))["keys"]
    then = json.loads(recorded.read_text())["keys"]
    begun_anew = {"{masc}:drained", "{masc}:seq"}  # by earlier versions, where they are missing
    assert told.keys() >= then.keys() - begun_anew
    for name, (kind, value) in then.items():
        if name in begun_anew:
            continue
        assert told[name][0] == kind, name
        assert_still_there(decoded(told[name][1]), decoded(value), name)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of the version before."""
    folder = tmp_path_factory.mktemp("before")
    unpack_sources(folder, "worker", "masc_core")
    return folder


async def test_jobs_of_an_older_front_end_wait_among_those_of_this_version(
    before: Path, redis_url: str, make_worker: MakeWorker, inside: redis.Redis
) -> None:
    worker = make_worker(LIMITS)
    async with RedisQueue(redis_url, LIMITS) as front:
        sent = [
            job(owner=owner, priority=one) for one in PRIORITIES for owner in "xy" for _ in "12"
        ]
        await submit(front, *sent)
        leases = claim(worker, 1)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, neighbour.__file__, "submit", redis_url),
            cwd=before,
            env=os.environ | {"PYTHONPATH": str(before), "PYTHONSAFEPATH": "1"},
            stdout=subprocess.PIPE,
        )
        told, _ = await asyncio.wait_for(process.communicate(), 45.0)
        assert json.loads(told) == list(neighbour.SERVED)
        worker.report([(lease, REQUEUE) for lease in leases])
        more = [job(owner=owner, priority=one) for one in PRIORITIES for owner in "xz"]
        await submit(front, *more)
        waiting = [*neighbour.SERVED, *(one.id for one in (*sent, *more))]
        assert sorted([(await front.status(one)).position or 0 for one in waiting]) == [*range(15)]
        taken = jobs_of(claim(worker))
        known = [one for one in taken if one in sent]
        assert known[:4] == [sent[0], sent[2], sent[1], sent[3]]
        assert sorted(one.id for one in taken) == sorted(waiting)
        assert await front.cancel_all("ann") == 3
        for owner in "xyz":
            await front.cancel_all(owner)
        totals = (await front.stats()).totals
        assert totals.ended == {"cancelled": totals.accepted}
        check_sums(inside)


@pytest.mark.parametrize("older", ["front", "worker"])
async def test_front_ends_and_workers_of_two_versions_make_one_service(
    older: str, before: Path, redis_url: str
) -> None:
    async def run(role: str) -> bytes:
        sources = before if role == older else ROOT
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, neighbour.__file__, role, redis_url),
            cwd=sources,
            env=environment_of(sources),
            stdout=subprocess.PIPE,
        )
        told, _ = await asyncio.wait_for(process.communicate(), 45.0)
        assert process.returncode == 0
        return told

    _, told = await asyncio.gather(run("worker"), run("front"))
    assert json.loads(told) == {
        "images": list(neighbour.SERVED),
        "events": [str(Started("v1")), str(Progress(0, 1, 8))],
        "workers": ["w"],
        "accepted": 4,
        "ended": {"ok": 3, "cancelled": 1},
        "again": "a",
    }
