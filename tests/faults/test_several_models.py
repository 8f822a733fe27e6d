"""A front end and workers of different models as processes; the only worker of one is killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.faults.cluster import START_SECONDS, Cluster
from tests.redis_server import RedisServer
from tests.tiny_bundle import save_tiny_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NAMES = ("a", "b")


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_model_that_loses_its_worker_takes_no_other_along(logs: Path, redis: RedisServer) -> None:
    models = logs.parent / "models"
    for seed, name in enumerate(NAMES):
        save_tiny_bundle(models, name, seed=seed)

    with Cluster(logs, models, redis, default_model="a", lease_seconds=1) as cluster:
        url = cluster.start_front_end().url

        def is_ready(name: str) -> bool:
            return httpx.get(f"{url}/readyz?model={name}", timeout=10).status_code == 200

        def image(name: str) -> httpx.Response:
            body = {"class_id": 0, "seed": 1, "model": name}
            accept = {"Accept": "image/png"}
            return httpx.post(f"{url}/generate", json=body, headers=accept, timeout=60)

        of = {name: cluster.start_worker("masc", "worker", "--model", name) for name in NAMES}
        wait_for(lambda: all(map(is_ready, NAMES)))
        files = {name: image(name).content for name in NAMES}
        assert files["a"] != files["b"]
        assert cluster.samples("masc_model_workers_ready") == {"a": 1, "b": 1}

        of["b"].kill()
        wait_for(lambda: not is_ready("b"))
        assert httpx.get(f"{url}/readyz", timeout=10).status_code == 200
        refused = image("b")
        assert refused.status_code == 503
        assert refused.json()["detail"] == (
            "no worker serves the model 'b', it is only stored; they serve 'a'"
        )
        assert image("a").content == files["a"]
        assert cluster.samples("masc_model_workers_ready") == {"a": 1, "b": 0}

        cluster.start_worker("masc", "worker", "--model", "all")
        wait_for(lambda: is_ready("b"))
        assert {name: image(name).content for name in NAMES} == files
        of["a"].kill()
        wait_for(lambda: cluster.samples("masc_model_workers_ready") == {"a": 1, "b": 1})
        assert {name: image(name).content for name in NAMES} == files
        cluster.assert_at_rest()
