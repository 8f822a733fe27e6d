"""Versions change every two seconds under load, and no request notices but by what it is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from server.auth.api_keys import hash_key
from tests.faults.bodies import Body, Oracle, files_of, some_requests
from tests.faults.client import Client
from tests.faults.cluster import Cluster
from tests.redis_server import RedisServer
from tests.tiny_bundle import CLASS_NAMES, save_tiny_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PERIOD = 2.0
MIN_CHANGES, MIN_ANSWERS = 10, 100  # of each version
ADMIN = "the key of an admin"


def test_versions_change_every_two_seconds_under_load(logs: Path, redis: RedisServer) -> None:
    models, keys = logs.parent / "models", logs.parent / "admins.toml"
    for version in ("2", "1"):
        save_tiny_bundle(models, version=version, seed=int(version))
    keys.write_text(f'[[keys]]\nname = "root"\nsha256 = "{hash_key(ADMIN)}"\n')
    keys.chmod(0o600)
    bodies = some_requests(40, seed=14, num_classes=len(CLASS_NAMES))
    expected = {v: Oracle.of(models / "tiny" / v).files(bodies) for v in ("1", "2")}
    made = {"1": 0, "2": 0}

    async def ask(client: Client, body: Body, index: int) -> None:
        answer = await client.generate(body)
        version = answer["model"]["version"]
        assert files_of(answer) == expected[version][index]
        made[version] += 1

    async def load(client: Client, changing: asyncio.Task[None]) -> None:
        while not changing.done():
            await asyncio.gather(*(ask(client, body, i) for i, body in enumerate(bodies)))

    async def change(client: Client) -> None:
        url = f"{client.urls[0]}/admin/models/tiny/activate"
        changes = 0
        while changes < MIN_CHANGES or min(made.values()) <= MIN_ANSWERS:
            await asyncio.sleep(PERIOD)
            version = "2" if changes % 2 == 0 else "1"
            headers = {"X-API-Key": ADMIN}
            answer = await client.http.post(url, json={"version": version}, headers=headers)
            assert answer.status_code == 200, answer.text
            assert answer.json()["num_workers"] == 2
            changes += 1

    async def run(cluster: Cluster) -> None:
        async with Client([one.url for one in cluster.front_ends], at_once=20) as client:
            changing = asyncio.create_task(change(client))
            await load(client, changing)
            await changing
            assert client.tally.failed == []
            assert client.tally.rejected == 0

    with Cluster(logs, models, redis, admin_keys_file=keys) as cluster:
        cluster.start(workers=2, front_ends=2)
        asyncio.run(run(cluster))
        cluster.assert_at_rest()
