from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.redis_server import RedisServer

# Before torch is imported: threads that wait must not spin, or tests that share their cores with
# other work take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture
def anyio_backend() -> str:
    """Tests that are coroutines run on asyncio, as the service does."""
    return "asyncio"


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """A Redis that lives as long as the tests: not to be killed or stopped."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(shared_redis: RedisServer) -> str:
    """Address of that Redis, emptied."""
    with shared_redis.client() as client:
        client.flushall()
    return shared_redis.url
