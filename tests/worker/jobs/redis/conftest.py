from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest
import redis

from tests.redis_server import RedisServer
from worker.jobs.queue import QueueLimits
from worker.jobs.redis.queue import RedisQueue

MakeWorker = Callable[[QueueLimits], RedisQueue]


@pytest.fixture
def make_worker(redis_url: str) -> Iterator[MakeWorker]:
    """A worker's side of the queue, of which only that side is used; any number of them."""
    with ExitStack() as stack:
        yield lambda limits: stack.enter_context(closing(RedisQueue(redis_url, limits)))


@pytest.fixture
def inside(shared_redis: RedisServer) -> Iterator[redis.Redis]:
    """What is in Redis."""
    with shared_redis.client() as client:
        yield client


def check_sums(inside: redis.Redis) -> None:
    """Hold what is counted against what is there, where no job lives."""
    for name in ("deadlines", "leases", "waiting:tiny", "owners:tiny"):
        assert not inside.exists("{masc}:" + name)
    check_result_bytes(inside)


def check_result_bytes(inside: redis.Redis) -> int:
    """Hold what kept results are said to take against what they take, which is returned."""
    counted = set(inside.zrange("{masc}:results", 0, -1))
    for name in inside.scan_iter("{masc}:job:*"):
        job_id = str(name).removeprefix("{masc}:job:")
        is_kept = inside.type(name) == "hash" and inside.hget(name, "keep") == "1"
        if inside.exists("{masc}:outcome:" + job_id) and inside.hget(name, "bytes"):
            assert is_kept == (job_id in counted)
    taken = sum(inside.strlen("{masc}:outcome:" + str(job_id)) for job_id in counted)
    assert int(inside.hget("{masc}:totals", "result_bytes") or 0) == taken
    return taken
