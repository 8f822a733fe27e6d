from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from masc_core.errors import StorageDownError
from object_storage.cached_value import CachedValue


def test_who_waits_for_a_reading_that_fails_reads_not_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the reading takes longer than its result is fresh."""
    monkeypatch.setattr("object_storage.cached_value.FRESH_SECONDS", 0.3)
    readings: list[None] = []
    all_ask = threading.Event()

    def read(_: str | None) -> str:
        readings.append(None)
        all_ask.wait(10)
        time.sleep(0.5)
        raise StorageDownError("s3://b/x", "cannot be reached")

    cached = CachedValue(read)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(cached.get) for _ in range(8)]
        time.sleep(0.1)
        all_ask.set()
        assert all(isinstance(one.exception(), StorageDownError) for one in asked)
    assert len(readings) == 1
