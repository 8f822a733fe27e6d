"""Ten times as much is asked for as can be done: a quick no to most, and all that is accepted."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from pathlib import Path

import httpx
import pytest

from tests.faults.bodies import some_requests
from tests.faults.cluster import SHIPPED, Cluster
from tests.redis_server import RedisServer
from tests.stopwatch import Stopwatch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SECONDS = 60.0
MIB = 1 << 20


def test_tenfold_overload_for_a_minute(logs: Path, redis: RedisServer) -> None:
    (body,) = some_requests(1, seed=15, num_classes=10, max_images=1)
    body |= {"num_images": 4, "cfg_scale": 2.0}
    rejections: list[float] = []
    accepted: list[int] = []

    async def ask(http: httpx.AsyncClient, number: int) -> None:
        started = watch.seconds
        answer = await http.post("/generate", json=body | {"seed": number})
        if answer.status_code == 503:
            assert answer.json()["type"] == "urn:masc:problem:queue-full"
            assert int(answer.headers["Retry-After"]) >= 1
            rejections.append(watch.seconds - started)
        else:
            accepted.append(answer.status_code)

    async def run(cluster: Cluster) -> list[int]:
        memory: list[int] = []
        limits = httpx.Limits(max_connections=None)
        url = cluster.front_ends[0].url
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
            for _ in range(2):  # the first ones find everything cold
                started = time.monotonic()
                await asyncio.gather(*(ask(http, number) for number in range(8)))
            rate = 10 * 8 / (time.monotonic() - started)
            tasks: list[asyncio.Task[None]] = []
            started, rng = time.monotonic(), random.Random(0)
            due = started
            while (due := due + rng.expovariate(rate)) < started + SECONDS:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                tasks.append(asyncio.create_task(ask(http, len(tasks))))
                if time.monotonic() > started + 15 + 5 * len(memory):
                    memory.append(cluster.front_ends[0].resident_bytes)
            await asyncio.gather(*tasks)
        return memory

    with Cluster(logs, SHIPPED, redis, max_batch=2, max_queue=8) as cluster, Stopwatch() as watch:
        cluster.start()
        memory = asyncio.run(run(cluster))
        assert len(rejections) > 5 * (len(accepted) - 16)
        assert set(accepted) == {200}
        assert statistics.quantiles(rejections, n=100)[98] <= 0.05
        assert len(memory) >= 8
        assert memory[-1] - memory[0] < 8 * MIB
        cluster.assert_at_rest()
        ended = cluster.samples("masc_jobs_ended_total")
        assert ended["ok"] == len(accepted)
        assert sum(ended.values()) == ended["ok"]
