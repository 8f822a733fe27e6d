"""A service under load goes from the last release's wheel to this code, and back."""

from __future__ import annotations

import asyncio
import io
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.command_line import ROOT
from tests.faults.bodies import Oracle, some_requests
from tests.faults.client import Client, keep_asking
from tests.faults.cluster import SHIPPED, Cluster, Process
from tests.faults.test_workers import until
from tests.last_release import environment_of, installed_wheel
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The last release, and a proof that processes run it."""
    folder = installed_wheel()
    imports = "import masc_core, server, worker as w; print(masc_core.__file__, w.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", imports],
        cwd=ROOT,
        env=environment_of(folder),
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(Path(file).is_relative_to(folder) for file in done.stdout.split())
    return folder


def pixels(file: bytes) -> bytes:
    """Of an image, whatever else its file says."""
    with Image.open(io.BytesIO(file)) as image:
        return image.tobytes()


def test_a_rolling_upgrade_and_the_way_back_cost_no_job(
    logs: Path, redis: RedisServer, shipped: Oracle, wheel: Path
) -> None:
    bodies = some_requests(4, seed=12, num_classes=10, max_images=1)
    files = shipped.files(bodies)

    async def end(process: Process) -> None:
        process.send(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 45) == 0

    async def run(cluster: Cluster) -> None:
        async with Client([], at_once=len(bodies)) as client:

            async def replace_worker() -> None:
                cluster.start_worker()
                await asyncio.to_thread(cluster.wait_for_workers, 2)
                await end(cluster.workers.pop(0))
                await work()

            async def replace_front_end() -> None:
                client.urls = [(await asyncio.to_thread(cluster.start_front_end)).url]
                await end(cluster.front_ends.pop(0))
                await work()

            async def work() -> None:
                enough = client.num_answered + 2 * len(bodies)
                await until(lambda: client.num_answered >= enough or asking.done(), 180)
                if asking.done():
                    await asking  # which has failed

            cluster.run_code_of(wheel)
            await asyncio.to_thread(cluster.start)
            client.urls = [cluster.front_ends[0].url]
            asking = asyncio.create_task(keep_asking(client, bodies, files, pixels))
            await work()
            cluster.run_code_of(ROOT)
            await replace_worker()  # the front end is of the release still
            await replace_front_end()
            cluster.run_code_of(wheel)
            await replace_worker()  # the front end is of this code still
            await replace_front_end()
            client.is_stopping = True
            await asking
            assert client.tally.failed == []
        await asyncio.to_thread(cluster.assert_at_rest)
        ended = cluster.samples("masc_jobs_ended_total")
        assert sum(ended.values()) == ended["ok"] == client.num_answered

    with Cluster(logs, SHIPPED, redis) as cluster:
        asyncio.run(run(cluster))
