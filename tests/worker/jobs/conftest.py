from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from worker.jobs.memory import MemoryQueue
from worker.jobs.queue import JobQueue, QueueLimits
from worker.jobs.redis.queue import RedisQueue


@pytest.fixture(params=("memory", "redis"))
def make_queue(request: pytest.FixtureRequest) -> Callable[[QueueLimits], JobQueue]:
    """Makes a queue of each adapter."""
    if request.param == "memory":
        return MemoryQueue
    return partial(RedisQueue, request.getfixturevalue("redis_url"))
