"""Versions change every two seconds under load, and no request notices but by what it is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from server.auth.api_keys import hash_key
from tests.faults.client import Client
from tests.faults.cluster import Cluster
from tests.faults.two_versions import TwoVersions
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PERIOD = 2.0
MIN_CHANGES, MIN_ANSWERS = 10, 100  # of each version
ADMIN = "the key of an admin"


def test_versions_change_every_two_seconds_under_load(logs: Path, redis: RedisServer) -> None:
    models, keys = logs.parent / "models", logs.parent / "admins.toml"
    versions = TwoVersions(models)
    keys.write_text(f'[[keys]]\nname = "root"\nsha256 = "{hash_key(ADMIN)}"\n')
    keys.chmod(0o600)

    async def change(client: Client) -> None:
        url = f"{client.urls[0]}/admin/models/tiny/activate"
        changes = 0
        while changes < MIN_CHANGES or min(versions.made.values()) <= MIN_ANSWERS:
            await asyncio.sleep(PERIOD)
            version = "2" if changes % 2 == 0 else "1"
            headers = {"X-API-Key": ADMIN}
            answer = await client.http.post(url, json={"version": version}, headers=headers)
            assert answer.status_code == 200, answer.text
            assert answer.json()["num_workers"] == 2
            changes += 1

    with Cluster(logs, models, redis, admin_keys_file=keys) as cluster:
        cluster.start(workers=2, front_ends=2)
        asyncio.run(versions.ask_while(cluster, change))
        cluster.assert_at_rest()
