"""One side of the queue as a version of this code has it: the one in whose folder it runs.

::

    PYTHONPATH=. python tests/worker/jobs/redis/neighbour.py record redis://127.0.0.1:6379/0 \
        > tests/golden/queue_records/0.1.0.json

``front`` submits jobs and prints what has become of them, ``worker`` serves them. ``submit`` leaves
them there and prints their ids. ``record`` prints all keys of an empty Redis into which it has put
a job of every state; times are of the server.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import closing
from typing import Any

import redis

from worker.jobs import queue as port
from worker.jobs.job import GenerationRequest, Idempotency, Job, Lease, Progress, Started
from worker.jobs.outcome import ImageOutput, JobResult, Timings
from worker.jobs.queue import QueueLimits, WorkerStatus
from worker.jobs.redis.queue import RedisQueue

# The name that it had before.
REQUEUE: Any = getattr(port, "REQUEUE", getattr(port, "HAND_BACK", None))
LIMITS = QueueLimits(lease_seconds=60.0)
READY = WorkerStatus("w", ready=True, model="tiny", version="v1")
SERVED, STATES = ("a", "b", "c"), ("waiting", "running", "ok", "cancelled")
DUMPS: dict[str, str] = {"hash": "hgetall", "set": "smembers", "string": "get"}


def job(job_id: str, key: str = "") -> Job:
    idempotency = Idempotency(key, "print") if key else None
    request = GenerationRequest("tiny", 3, 1.5, seed=7, decoding="frequency")
    more: Any = {"priority": "batch"} if job_id == "c" and hasattr(Job, "priority") else {}
    return Job(
        request, id=job_id, owner="ann", keep=True, idempotency=idempotency, timeout=60.0, **more
    )


def result(lease: Lease) -> JobResult:
    image = ImageOutput(lease.job_id.encode(), 7, (1.0, 2.5), 1.75, 0.5)
    return JobResult((image,), "tiny", "v1", "0" * 64, Timings(total=0.5))


async def front(url: str) -> dict[str, object]:
    """Submit jobs, cancel the last one, and wait for the others."""
    async with RedisQueue(url, LIMITS) as queue:
        for job_id in (*SERVED, "d"):
            await queue.submit(job(job_id, key=job_id))
        await queue.cancel("d")
        again = await queue.submit(job("e", key="a"))
        outcomes = [await queue.outcome(job_id) for job_id in SERVED]
        images = [one.images[0].data.decode() for one in outcomes if isinstance(one, JobResult)]
        events = [str(one.event) async for one in queue.events("a")]
        workers, totals = await queue.workers(), (await queue.stats()).totals
        return {
            "images": images,
            "events": events,
            "workers": [one.worker_id for one in workers],
            "accepted": totals.accepted,
            "ended": dict(totals.ended),
            "again": again.job_id,
        }


async def submit(url: str) -> list[str]:
    """Submit jobs, and leave them there."""
    async with RedisQueue(url, LIMITS) as queue:
        return [(await queue.submit(job(job_id))).job_id for job_id in SERVED]


def serve(url: str) -> None:
    """Announce a worker, and serve as many jobs as `front` waits for; one is given back once."""
    with closing(RedisQueue(url, LIMITS)) as queue:
        queue.announce(READY)
        given_back: set[str] = set()
        num_left = len(SERVED)
        until = time.monotonic() + 30.0
        while num_left and time.monotonic() < until:
            for lease in queue.claim("tiny", 2, 0.1):
                if not given_back:
                    given_back.add(lease.job_id)
                    queue.report([(lease, REQUEUE)])
                    continue
                queue.renew([lease])
                queue.report([(lease, Started("v1")), (lease, Progress(0, 1, 8))])
                num_left -= sum(queue.report([(lease, result(lease))]))


async def record(url: str) -> dict[str, object]:
    """Put a job of every state into Redis; all keys there, values in hexadecimal digits."""
    async with RedisQueue(url, LIMITS) as queue:
        for state in reversed(STATES):
            await queue.submit(job(state, key=f"key of {state}"))
            leases = queue.claim("tiny", 2, 0.0) if state in {"running", "ok"} else ()
            for lease in leases if state == "ok" else ():
                queue.report([(lease, Started("v1")), (lease, Progress(0, 1, 8))])
                queue.report([(lease, result(lease))])
            if state == "cancelled":
                await queue.cancel(state)
        queue.announce(READY)
        queue.close()
    client: Any = redis.Redis.from_url(url)  # whose types allow for text, too
    with client as inside:
        seconds, microseconds = inside.time()
        now = 1000 * seconds + microseconds // 1000
        keys = {name.decode(): _dump(inside, name) for name in sorted(inside.scan_iter())}
        return {"now": now, "keys": keys}


def _dump(inside: Any, name: bytes) -> tuple[str, Any]:
    kind = inside.type(name).decode()
    if kind == "zset":
        return kind, {
            one.hex(): score for one, score in inside.zrange(name, 0, -1, withscores=True)
        }
    if kind == "stream":
        entries = inside.xrange(name)
        return kind, {number.decode(): _as_hex(fields) for number, fields in entries}
    return kind, _as_hex(getattr(inside, DUMPS[kind])(name))


def _as_hex(value: Any) -> Any:
    match value:
        case bytes():
            return value.hex()
        case dict():
            return {_as_hex(name): _as_hex(one) for name, one in value.items()}
    return sorted(_as_hex(one) for one in value)


if __name__ == "__main__":
    role, address = sys.argv[1:]
    if role == "worker":
        serve(address)
    else:
        told = asyncio.run({"front": front, "submit": submit, "record": record}[role](address))
        json.dump(told, sys.stdout, indent=1)
