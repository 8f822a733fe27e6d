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
