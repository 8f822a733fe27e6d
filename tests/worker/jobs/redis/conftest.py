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


def check_result_bytes(inside: redis.Redis) -> None:
    """Hold what kept results are said to take against what they take."""
    names = [str(name) for name in inside.scan_iter("{masc}:outcome:*")]
    sizes = {name.removeprefix("{masc}:outcome:"): inside.strlen(name) for name in names}
    kept = {
        job_id: size
        for job_id, size in sizes.items()
        if inside.hget("{masc}:job:" + job_id, "keep") == "1" and size
    }
    assert set(inside.zrange("{masc}:results", 0, -1)) == kept.keys()
    assert int(inside.hget("{masc}:totals", "result_bytes") or 0) == sum(kept.values())
