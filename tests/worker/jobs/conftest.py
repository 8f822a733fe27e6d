from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.redis_server import RedisCluster, valkey_binary
from worker.jobs.memory import MemoryQueue
from worker.jobs.queue import JobQueue, QueueLimits
from worker.jobs.redis.queue import RedisQueue

ADAPTERS = ("memory", "redis", pytest.param("valkey-cluster", marks=pytest.mark.slow))


@pytest.fixture(scope="module")
def valkey_cluster() -> Iterator[RedisCluster]:
    """A cluster of three masters."""
    with RedisCluster(valkey_binary()) as cluster:
        yield cluster


@pytest.fixture(params=ADAPTERS)
def make_queue(request: pytest.FixtureRequest) -> Callable[[QueueLimits], JobQueue]:
    """Makes a queue of each adapter."""
    if request.param == "memory":
        return MemoryQueue
    if request.param == "redis":
        return partial(RedisQueue, request.getfixturevalue("redis_url"))
    cluster: RedisCluster = request.getfixturevalue("valkey_cluster")
    with cluster.master.client() as inside:
        inside.flushall()
    return partial(RedisQueue, cluster.url)
