"""Models in object storage under load: versions change everywhere, and its loss costs nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from object_storage.registry import open_registry
from tests.faults.client import Client
from tests.faults.cluster import Cluster
from tests.faults.two_versions import TwoVersions
from tests.object_storage.published import publish
from tests.object_store import ObjectStore, is_installed
from tests.redis_server import RedisServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not is_installed(), reason="needs Ceph's gateway"),
]

NUM_WORKERS = 2
MOST_SECONDS = 30.0  # until all workers serve what was activated


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, logs: Path) -> Iterator[ObjectStore]:
    with ObjectStore() as store:
        for name, value in store.variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MASC_MODELS_CACHE", str(logs.parent / "cache-of-tests"))
        yield store


async def activate(cluster: Cluster, url: str, version: str) -> None:
    """Activate a version, and wait until all workers serve it."""
    command = [sys.executable, "-m", "masc", "models", "activate", "tiny", version, "--models", url]
    await asyncio.to_thread(subprocess.run, command, check=True)
    until = time.monotonic() + MOST_SECONDS
    while await asyncio.to_thread(served, cluster) != [version] * NUM_WORKERS:
        assert time.monotonic() < until
        await asyncio.sleep(0.1)


def served(cluster: Cluster) -> list[str]:
    """Versions that ready workers serve."""
    answer = httpx.get(f"{cluster.front_ends[0].url}/readyz", timeout=10)
    return [worker["version"] for worker in answer.json()["workers"]]


def assert_start_ends(cluster: Cluster, cache: Path) -> None:
    """A worker without the storage says so in its last line, and ends."""
    late = cluster.start_worker(models_cache=str(cache))
    assert late.wait(120) == 2
    text = late.log.read_text()
    assert "cannot be reached" in text.splitlines()[-1]
    assert "Traceback" not in text


def test_versions_change_on_all_machines_and_the_storage_may_go(
    logs: Path, redis: RedisServer, store: ObjectStore
) -> None:
    folders = logs.parent / "folders"
    versions = TwoVersions(folders)
    url = f"{store.make_bucket('models')}/prefix"
    publish(open_registry(url), folders, "1", "2")

    async def change(_: Client) -> None:
        for version in ("2", "1"):
            await activate(cluster, url, version)
        await asyncio.to_thread(store.stop)
        before = versions.made["1"]
        await asyncio.to_thread(assert_start_ends, cluster, logs.parent / "late")
        assert versions.made["1"] > before
        await asyncio.to_thread(store.start)
        await activate(cluster, url, "2")

    with Cluster(logs, url, redis, models_cache=logs.parent / "cache") as cluster:
        for machine in range(NUM_WORKERS):
            cluster.start_worker(models_cache=str(logs.parent / f"machine-{machine}"))
        cluster.start_front_end()
        cluster.start_front_end()
        cluster.wait_for_workers(NUM_WORKERS, 180)
        asyncio.run(versions.ask_while(cluster, change))
        cluster.assert_at_rest()
    assert min(versions.made.values()) > 0
