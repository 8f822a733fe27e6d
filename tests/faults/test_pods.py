"""Pods of docker/kubernetes are rolled and taken away under load; see `tests.faults.pods`."""

from __future__ import annotations

import asyncio
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import ROOT, environment
from tests.docker.manifests import arguments, container, overlay
from tests.faults.bodies import Oracle, some_requests
from tests.faults.client import Client, keep_asking
from tests.faults.cluster import SHIPPED, Cluster
from tests.faults.pods import Deployments, Pod
from tests.faults.test_workers import until
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PASSWORD = "0f" * 32
OBJECTS = overlay("cpu")
SETTINGS = {"MASC_THREADS": "1"}  # the last bit of a pixel depends on it


@pytest.fixture
def included() -> Iterator[RedisServer]:
    """The Redis of the manifests."""
    part = container(OBJECTS, "StatefulSet", "masc-redis")
    _, *words = shlex.split(" ".join(arguments(part, {"REDISCLI_AUTH": PASSWORD})))
    options = dict(zip(words[::2], words[1::2], strict=True))
    with RedisServer(
        **{name.removeprefix("--"): value for name, value in options.items()}
    ) as server:
        yield server


@pytest.fixture
def secrets(included: RedisServer) -> dict[str, dict[str, str]]:
    url = f"redis://:{PASSWORD}@127.0.0.1:{included.port}/0"
    return {"masc-queue": {"url": url, "password": PASSWORD}}


@pytest.fixture
def key(logs: Path) -> str:
    """A client's, in a Secret that is mounted as a node does it: by links."""
    inside = logs / "keys" / "..2026_11_30"
    inside.mkdir(parents=True)
    (logs / "keys" / "..data").symlink_to(inside.name)
    printed = ""
    for name in ("admin", "api"):
        create = ["masc", "keys", "create", "alice", "--file", str(inside / f"{name}.toml")]
        done = subprocess.run(
            [sys.executable, "-m", *create],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        (logs / "keys" / f"{name}.toml").symlink_to(f"..data/{name}.toml")
        printed = done.stdout.split()[0]
    return printed


def test_rolling_and_scaling_under_load_cost_no_request(
    logs: Path,
    included: RedisServer,
    secrets: dict[str, dict[str, str]],
    key: str,
    shipped: Oracle,
) -> None:
    bodies = some_requests(4, seed=11, num_classes=10, max_images=1)
    files = shipped.files(bodies)

    async def run(cluster: Cluster) -> None:
        deployments = Deployments(OBJECTS, logs, secrets, SETTINGS, cluster.processes)
        cluster.start_front_end()  # to be asked for figures alone
        await deployments.start()
        async with Client([], at_once=len(bodies)) as client:
            client.http.headers["Authorization"] = f"Bearer {key}"
            service = asyncio.create_task(deployments.send_to_endpoints(client))
            asking = asyncio.create_task(keep_asking(client, bodies, files))
            await deployments.roll("worker")
            await deployments.roll("server")
            await deployments.pods["worker"].pop().delete()
            client.is_stopping = True
            await asking
            service.cancel()
            assert client.tally.failed == []
            assert client.tally.rejected == 0
            assert client.num_answered > 3 * len(bodies)
        await asyncio.to_thread(cluster.assert_at_rest)
        assert cluster.samples("masc_jobs_ended_total") == {
            "ok": client.num_answered,
            "error": 0,
            "cancelled": 0,
            "expired": 0,
        }
        assert not cluster.samples("masc_jobs_redelivered_total")["lease_expired"]
        await asyncio.gather(*(pod.delete() for pods in deployments.pods.values() for pod in pods))

    with Cluster(logs, SHIPPED, included, queue_url=secrets["masc-queue"]["url"]) as cluster:
        asyncio.run(run(cluster))


@pytest.mark.parametrize("part", ["server", "worker"])
def test_a_pod_that_is_deleted_while_it_starts_ends_at_once(
    part: str, logs: Path, secrets: dict[str, dict[str, str]], key: str
) -> None:
    async def run() -> None:
        pod = Pod(OBJECTS, part, "127.0.1.1", logs, secrets, SETTINGS)
        try:
            maps = Path(f"/proc/{pod.pid}/maps")
            await until(lambda: "pydantic_core" in maps.read_text(), 60)  # it imports
            started = time.monotonic()
            pod.send(signal.SIGTERM)
            assert await asyncio.to_thread(pod.wait, 10) == -signal.SIGTERM
            assert time.monotonic() - started < 5
        finally:
            pod.kill()

    asyncio.run(run())
