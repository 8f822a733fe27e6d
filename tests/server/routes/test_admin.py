"""Versions change under a real worker, with the front end that tells it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from masc_core.bundle.manifest import TRANSFORMER_FILE
from masc_core.bundle.registry import Registry
from server.app import create_app
from server.settings import ServerSettings
from tests.server.auth.test_access import ROOT, write_keys
from tests.server.service import Service, assert_problem
from tests.tiny_bundle import save_tiny_bundle, spoil
from worker.jobs.memory import MemoryQueue
from worker.jobs.queue import WorkerStatus
from worker.main import LoopThread, build_worker
from worker.settings import load_settings

ADMIN = {"X-API-Key": ROOT}


class Serving:
    """A front end and a worker of the tiny model, of which version 1 is active."""

    def __init__(self, root: Path) -> None:
        self.models = root / "models"
        for version in ("2", "1"):
            save_tiny_bundle(self.models, version=version, seed=int(version))
        keys = {"admin_keys_file": write_keys(root)["admin_keys_file"]}
        self.queue = MemoryQueue()
        settings = ServerSettings(models_dir=self.models, **keys)
        self.registry = Registry(self.models)
        self.app = create_app(settings, self.queue, self.registry, CollectorRegistry())
        back = load_settings(models_dir=self.models, device="cpu")
        self.consumer = build_worker(back, self.queue, CollectorRegistry())
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://masc", headers=ADMIN
        )

    async def activate(self, version: str, **fields: Any) -> httpx.Response:
        body = {"version": version, **fields}
        return await self.client.post("/admin/models/tiny/activate", json=body)

    async def generate(self) -> tuple[str, str]:
        """The version that made an image, and the image."""
        body = {"class_id": 2, "seed": 3}
        answer = (await self.client.post("/generate", json=body)).json()
        return answer["model"]["version"], answer["images"][0]["b64"]


@contextmanager
def serving(root: Path) -> Iterator[Serving]:
    here = Serving(root)
    thread = LoopThread(here.consumer)
    thread.start()
    try:
        yield here
    finally:
        here.consumer.stop()
        thread.join(60)
        assert thread.failure is None


async def until_ready(here: Serving) -> None:
    async with asyncio.timeout(30):
        while (await here.client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - a thread's
            await asyncio.sleep(0.01)


def test_another_version_is_served_and_the_first_one_again(tmp_path: Path) -> None:
    async def run() -> None:
        await until_ready(here)
        version, first = await here.generate()
        assert version == "1"
        answer = await here.activate("2")
        assert answer.status_code == 200, answer.text
        expected = {"model": "tiny", "version": "2", "previous": "1", "state": "serving"}
        assert answer.json() == expected | {"num_workers": 1}
        version, second = await here.generate()
        assert version == "2"
        assert second != first
        assert (await here.activate("1")).status_code == 200
        assert await here.generate() == ("1", first)

    with serving(tmp_path) as here:
        asyncio.run(run())


def test_a_rollback_of_the_registry_is_served_without_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        await until_ready(here)
        assert (await here.activate("2")).json()["state"] == "serving"
        assert (await here.generate())[0] == "2"
        assert Registry(here.models).rollback("tiny") == "1"
        async with asyncio.timeout(30):
            while (await here.generate())[0] != "1":  # noqa: ASYNC110 - a thread's
                await asyncio.sleep(0.01)

    with serving(tmp_path) as here:
        asyncio.run(run())


def test_a_damaged_version_is_refused_and_the_old_one_goes_on(tmp_path: Path) -> None:
    async def run() -> None:
        await until_ready(here)
        problem = assert_problem(await here.activate("2"), 409, "version")
        assert problem["type"] == "urn:masc:problem:version-refused"
        assert here.registry.current("tiny") == "1"
        assert (await here.generate())[0] == "1"
        assert_problem(await here.activate("3"), 404, "version")
        assert_problem(await here.activate("../1"), 404, "version")

    with serving(tmp_path) as here:
        path = here.models / "tiny" / "2" / TRANSFORMER_FILE
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
        asyncio.run(run())


def test_a_version_whose_first_image_fails_is_refused(tmp_path: Path) -> None:
    async def run() -> None:
        await until_ready(here)
        save_tiny_bundle(here.models, version="3")
        here.registry.activate("tiny", "1")
        spoil(here.models / "tiny" / "3")
        problem = assert_problem(await here.activate("3"), 409, "version")
        assert here.registry.previous("tiny") == "2"  # never the one that was refused
        assert "NaN" in problem["detail"]
        assert here.registry.current("tiny") == "1"
        assert (await here.generate())[0] == "1"
        assert (await here.client.get("/readyz")).status_code == 200
        assert (await here.activate("2")).status_code == 200
        assert (await here.generate())[0] == "2"

    with serving(tmp_path) as here:
        asyncio.run(run())


@pytest.mark.parametrize("by", ["the front end", "the command line"])
def test_a_refused_version_that_was_mended_can_be_activated_at_once(
    tmp_path: Path, by: str
) -> None:
    async def run() -> None:
        await until_ready(here)
        if by == "the front end":
            assert_problem(await here.activate("3"), 409, "version")
        else:  # which leaves it active
            here.registry.activate("tiny", "3")
            async with asyncio.timeout(30):
                while here.consumer.status.refused != "3":  # noqa: ASYNC110 - a thread's
                    await asyncio.sleep(0.01)
        shutil.rmtree(folder)
        intact.rename(folder)
        answer = await here.activate("3")
        assert answer.status_code == 200, answer.text
        assert here.registry.current("tiny") == "3"
        assert (await here.generate())[0] == "3"

    with serving(tmp_path) as here:
        folder, intact = here.models / "tiny" / "3", tmp_path / "intact"
        save_tiny_bundle(here.models, version="3")
        here.registry.activate("tiny", "1")
        shutil.copytree(folder, intact)
        spoil(folder)
        asyncio.run(run())


def test_whoever_does_not_want_to_wait_is_told_so(tmp_path: Path) -> None:
    here = Serving(tmp_path)
    here.queue.announce(WorkerStatus("w", ready=True, model="tiny", version="1"))

    async def run() -> None:
        answer = await here.activate("2", wait_seconds=0)
        assert answer.status_code == 202
        assert (answer.json()["state"], answer.json()["num_workers"]) == ("pending", 0)
        assert here.registry.current("tiny") == "2"

    asyncio.run(run())
    here.consumer._versions.close()


def test_a_worker_that_is_not_ready_does_not_serve_it_yet(tmp_path: Path) -> None:
    here = Serving(tmp_path)
    here.queue.announce(WorkerStatus("w", ready=False, model="tiny", version="1"))
    answer = asyncio.run(here.activate("2", wait_seconds=0))
    assert (answer.status_code, answer.json()["state"]) == (202, "pending")
    here.consumer._versions.close()


def test_without_workers_only_the_choice_changes(tmp_path: Path) -> None:
    here = Serving(tmp_path)
    answer = asyncio.run(here.activate("2"))
    assert (answer.status_code, answer.json()["num_workers"]) == (200, 0)
    assert here.registry.current("tiny") == "2"
    here.consumer._versions.close()


@pytest.mark.parametrize("body", [b"{}", b'{"version": 2}', b'{"version": "2", "force": true}'])
def test_bodies_are_checked(tmp_path: Path, body: bytes) -> None:
    with Service(tmp_path, **write_keys(tmp_path)) as service:
        headers = {**ADMIN, "Content-Type": "application/json"}
        path = "/admin/models/tiny/activate"
        assert service.call("POST", path, content=body, headers=headers).status_code == 422


def test_only_admins_may(tmp_path: Path) -> None:
    path, body = "/admin/models/tiny/activate", {"version": "v1"}
    with Service(tmp_path) as service:
        assert_problem(service.call("POST", path, json=body), 403)
    with Service(tmp_path, **write_keys(tmp_path)) as service:
        assert_problem(service.call("POST", path, json=body), 401)
