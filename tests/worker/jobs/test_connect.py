from __future__ import annotations

import asyncio

import pytest

from masc_core.errors import ConfigError, QueueFullError
from worker.jobs.connect import connect
from worker.jobs.job import GenerationRequest, Job


def test_memory_is_a_queue_with_the_given_limit() -> None:
    queue = connect("memory://", max_jobs=1)
    request = GenerationRequest("tiny", 0, 1.0, 0)
    asyncio.run(queue.submit(Job(request)))
    with pytest.raises(QueueFullError):
        asyncio.run(queue.submit(Job(request)))


@pytest.mark.parametrize("url", ["", "memory", "ftp://host", "http://[::1", "postgres://u:hush@h"])
def test_other_urls_are_refused_without_telling_a_password(url: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        connect(url, max_jobs=1)
    assert "hush" not in str(refusal.value)
    assert str(refusal.value).startswith("MASC_QUEUE_URL: ")
