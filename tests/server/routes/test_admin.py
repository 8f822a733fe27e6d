"""Versions change under a real worker, with the front end that tells it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from masc_core.bundle.manifest import TRANSFORMER_FILE
from masc_core.bundle.registry import Registry
from server.app import create_app
from server.settings import ServerSettings
from tests.server.auth.test_api_keys import ROOT, write_keys
from tests.server.service import Service, assert_problem
from tests.tiny_bundle import save_tiny_bundle, spoil
from worker.jobs.memory import MemoryQueue
from worker.jobs.queue import WorkerStatus
from worker.main import LoopThread, build_worker
from worker.settings import load_settings

ADMIN = {"X-API-Key": ROOT}


class FrontEnd:
    """A front end of the tiny model, of which version 1 is active.

    Version 2 is whole, version 3 has a NaN in its weights, and version 4 is damaged.
    """

    def __init__(self, root: Path) -> None:
        self.models = root / "models"
        for version in ("4", "3", "2", "1"):
            save_tiny_bundle(self.models, version=version, seed=int(version))
        shutil.copytree(self.folder("3"), root / "intact")
        spoil(self.folder("3"))
        damaged = self.folder("4") / TRANSFORMER_FILE
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x01")
        keys = {"admin_keys_file": write_keys(root)["admin_keys_file"]}
        self.queue = MemoryQueue()
        settings = ServerSettings(models_dir=self.models, **keys)
        self.registry = Registry(self.models)
        self.app = create_app(settings, self.queue, self.registry, CollectorRegistry())
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app), base_url="http://masc", headers=ADMIN
        )

    def folder(self, version: str) -> Path:
        return self.models / "tiny" / version

    async def activate(self, version: str, **fields: Any) -> httpx.Response:
        body = {"version": version, **fields}
        return await self.client.post("/admin/models/tiny/activate", json=body)

    async def generate(self) -> tuple[str, str]:
        """The version that made an image, and the image."""
        body = {"class_id": 2, "seed": 3}
        answer = (await self.client.post("/generate", json=body)).json()
        return answer["model"]["version"], answer["images"][0]["b64"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontEnd]:
    """One worker for all tests, each of which leaves version 1 active."""
    here = FrontEnd(tmp_path_factory.mktemp("serving"))
    settings = load_settings(models_dir=here.models, device="cpu")
    worker = build_worker(settings, here.queue, CollectorRegistry())
    thread = LoopThread(worker)
    thread.start()
    try:
        asyncio.run(until_ready(here))
        yield here
    finally:
        worker.stop()
        thread.join(60)
        assert thread.failure is None


async def until_ready(here: FrontEnd) -> None:
    async with asyncio.timeout(30):
        while (await here.client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - a thread's
            await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_another_version_is_served_and_the_first_one_again(here: FrontEnd) -> None:
    version, first = await here.generate()
    assert version == "1"
    answer = await here.activate("2")
    assert answer.status_code == 200, answer.text
    expected = {"model": "tiny", "version": "2", "previous": "1", "state": "serving"}
    assert answer.json() == expected | {"num_workers": 1, "warnings": []}
    version, second = await here.generate()
    assert version == "2"
    assert second != first
    assert (await here.activate("1")).status_code == 200
    assert await here.generate() == ("1", first)


@pytest.mark.anyio
async def test_the_answer_tells_what_clients_will_miss(here: FrontEnd) -> None:
    save_tiny_bundle(here.models, version="poor", counts=False)
    Registry(here.models).activate("tiny", "1")
    answer = await here.activate("poor")
    assert answer.status_code == 200, answer.text
    assert answer.json()["warnings"] == ["no frequency decoding"]
    assert (await here.activate("1")).json()["warnings"] == []


@pytest.mark.anyio
async def test_a_rollback_of_the_registry_is_served_without_a_restart(here: FrontEnd) -> None:
    assert (await here.activate("2")).json()["state"] == "serving"
    assert (await here.generate())[0] == "2"
    assert Registry(here.models).rollback("tiny") == "1"
    async with asyncio.timeout(30):
        while (await here.generate())[0] != "1":  # noqa: ASYNC110 - a thread's
            await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_a_damaged_version_is_refused_and_the_old_one_goes_on(here: FrontEnd) -> None:
    problem = assert_problem(await here.activate("4"), 409, "version")
    assert problem["type"] == "urn:masc:problem:version-refused"
    assert here.registry.current("tiny") == "1"
    assert (await here.generate())[0] == "1"
    assert_problem(await here.activate("5"), 404, "version")
    assert_problem(await here.activate("../1"), 404, "version")


@pytest.mark.anyio
async def test_a_version_whose_first_image_fails_is_refused_until_it_is_mended(
    here: FrontEnd,
) -> None:
    for version in ("2", "1"):
        assert (await here.activate(version)).status_code == 200
    problem = assert_problem(await here.activate("3"), 409, "version")
    assert here.registry.previous("tiny") == "2"  # never the one that was refused
    assert "NaN" in problem["detail"]
    assert here.registry.current("tiny") == "1"
    assert (await here.generate())[0] == "1"
    assert (await here.client.get("/readyz")).status_code == 200
    assert (await here.activate("2")).status_code == 200
    assert (await here.generate())[0] == "2"
    assert_problem(await here.activate("3"), 409, "version")
    shutil.rmtree(here.folder("3"))
    shutil.copytree(here.models.parent / "intact", here.folder("3"))
    answer = await here.activate("3")  # at once
    assert answer.status_code == 200, answer.text
    assert here.registry.current("tiny") == "3"
    assert (await here.generate())[0] == "3"
    assert (await here.activate("1")).status_code == 200


@pytest.mark.anyio
async def test_a_refused_version_that_the_command_line_chose_can_be_activated_once_it_is_mended(
    here: FrontEnd,
) -> None:
    shutil.rmtree(here.folder("3"))
    shutil.copytree(here.models.parent / "intact", here.folder("3"))
    spoil(here.folder("3"))
    here.registry.activate("tiny", "3")  # which leaves it active
    async with asyncio.timeout(30):
        while (await here.queue.workers())[0].refused != "3":  # noqa: ASYNC110 - a thread's
            await asyncio.sleep(0.01)
    shutil.rmtree(here.folder("3"))
    shutil.copytree(here.models.parent / "intact", here.folder("3"))
    answer = await here.activate("3")
    assert answer.status_code == 200, answer.text
    assert here.registry.current("tiny") == "3"
    assert (await here.generate())[0] == "3"
    assert (await here.activate("1")).status_code == 200


def test_whoever_does_not_want_to_wait_is_told_so(tmp_path: Path) -> None:
    here = FrontEnd(tmp_path)
    here.queue.announce(WorkerStatus("w", ready=True, model="tiny", version="1"))

    async def run() -> None:
        answer = await here.activate("2", wait_seconds=0)
        assert answer.status_code == 202
        assert (answer.json()["state"], answer.json()["num_workers"]) == ("pending", 0)
        assert here.registry.current("tiny") == "2"

    asyncio.run(run())


def test_a_worker_that_is_not_ready_does_not_serve_it_yet(tmp_path: Path) -> None:
    here = FrontEnd(tmp_path)
    here.queue.announce(WorkerStatus("w", ready=False, model="tiny", version="1"))
    answer = asyncio.run(here.activate("2", wait_seconds=0))
    assert (answer.status_code, answer.json()["state"]) == (202, "pending")


def test_a_refusal_after_the_answer_is_undone_too(tmp_path: Path) -> None:
    here = FrontEnd(tmp_path)

    async def run() -> None:
        here.queue.announce(WorkerStatus("w", ready=True, model="tiny", version="1"))
        answer = await here.activate("2", wait_seconds=0)
        assert answer.status_code == 202
        assert here.registry.current("tiny") == "2"
        refusing = WorkerStatus("w", ready=True, model="tiny", version="1", refused="2")
        here.queue.announce(refusing)
        async with asyncio.timeout(10):
            while here.registry.current("tiny") != "1":  # noqa: ASYNC110 - of the registry
                await asyncio.sleep(0.01)

    asyncio.run(run())


def test_without_workers_only_the_choice_changes(tmp_path: Path) -> None:
    here = FrontEnd(tmp_path)
    answer = asyncio.run(here.activate("2"))
    assert (answer.status_code, answer.json()["num_workers"]) == (200, 0)
    assert here.registry.current("tiny") == "2"


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
