from __future__ import annotations

import asyncio
from contextlib import closing

import pytest

from masc_core.errors import ConfigError, QueueFullError
from tests.redis_server import RedisServer
from worker.jobs.connect import connect
from worker.jobs.job import GenerationRequest, Job
from worker.jobs.queue import QueueLimits
from worker.jobs.redis.queue import RedisQueue


def test_memory_is_a_queue_with_the_given_limit() -> None:
    queue = connect("memory://", QueueLimits(max_jobs=1))
    request = GenerationRequest("tiny", 0, 1.0, 0)
    asyncio.run(queue.submit(Job(request)))
    with pytest.raises(QueueFullError):
        asyncio.run(queue.submit(Job(request)))


def test_redis_is_a_queue_with_the_given_limits(redis_url: str) -> None:
    queue = connect(redis_url, QueueLimits(lease_seconds=7.0))
    assert isinstance(queue, RedisQueue)
    with closing(queue):
        assert queue.lease_seconds == 7.0
        assert queue.claim("tiny", 1, 0.0) == []


@pytest.mark.parametrize("url", ["redis://:hush@h:port/0", "redis://:hush@h/0?socket_timeout=soon"])
def test_a_url_of_redis_that_cannot_be_read_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        connect(url, QueueLimits())
    assert str(refusal.value) == "MASC_QUEUE_URL: the URL cannot be read"


def test_a_wrong_password_names_the_variable_only() -> None:
    with RedisServer(requirepass="secret") as server, pytest.raises(ConfigError) as refusal:
        connect(f"redis://:hush@127.0.0.1:{server.port}", QueueLimits())
    assert str(refusal.value).startswith("MASC_QUEUE_URL: ")
    assert "hush" not in str(refusal.value)


@pytest.mark.parametrize("url", ["", "memory", "ftp://host", "http://[::1", "postgres://u:hush@h"])
def test_other_urls_are_refused_without_telling_a_password(url: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        connect(url, QueueLimits(max_jobs=1))
    assert "hush" not in str(refusal.value)
    assert str(refusal.value).startswith("MASC_QUEUE_URL: ")
