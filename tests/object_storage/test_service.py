"""A front end, and a worker, of models in object storage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from masc_core.bundle.manifest import TRANSFORMER_FILE
from masc_core.bundle.registry import Registry
from object_storage.bucket import Bucket
from object_storage.registry import open_registry
from server.app import create_app
from server.settings import ServerSettings
from tests.object_storage.published import publish
from tests.object_store import ObjectStore
from tests.server.auth.test_api_keys import ROOT, write_keys
from tests.server.pictured_model import write_pictured
from tests.server.service import assert_problem
from worker.jobs.memory import MemoryQueue
from worker.main import LoopThread, build_worker
from worker.settings import load_settings

PICTURES = (
    "/models",
    "/models/tiny/classes",
    "/models/tiny/classes/1/thumbnail",
    "/models/tiny/codebook",
    "/models/tiny/codebook/patches",
    "/models/tiny/codebook/clusters",
)


@asynccontextmanager
async def front_end(
    registry: Registry, keys: Path, queue: MemoryQueue
) -> AsyncIterator[httpx.AsyncClient]:
    settings = ServerSettings(admin_keys_file=write_keys(keys)["admin_keys_file"])
    app = create_app(settings, queue, registry, CollectorRegistry())
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://masc",
        headers={"X-API-Key": ROOT},
        timeout=120,
    ) as client:
        yield client


@pytest.fixture
def queue() -> MemoryQueue:
    return MemoryQueue()


@pytest.fixture
def served(registry: Registry, url: str, queue: MemoryQueue, folders: Path) -> Iterator[None]:
    """A worker that serves version 1; there is a version 2, too."""
    publish(registry, folders, "1", "2")
    settings = load_settings(models_dir=url, device="cpu", threads=1)
    worker = build_worker(settings, queue, CollectorRegistry())
    thread = LoopThread(worker)
    thread.start()
    yield
    worker.stop()
    thread.join(60)
    assert thread.failure is None


async def until_ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - a thread's
            await asyncio.sleep(0.01)


async def generate(client: httpx.AsyncClient) -> str:
    """The version that made an image."""
    answer = await client.post("/generate", json={"class_id": 1, "seed": 3})
    assert answer.status_code == 200, answer.text
    version: str = answer.json()["model"]["version"]
    return version


async def activate(client: httpx.AsyncClient, version: str, **fields: Any) -> httpx.Response:
    body = {"version": version, **fields}
    return await client.post("/admin/models/tiny/activate", json=body)


@pytest.mark.anyio
async def test_pictures_are_those_of_a_folder(
    bucket: Bucket, url: str, queue: MemoryQueue, tmp_path: Path
) -> None:
    local = Registry(tmp_path / "local")
    manifest = write_pictured(local.root)
    for file in (path for path in local.root.rglob("*") if path.is_file()):
        bucket.upload(str(file.relative_to(local.root)), file)
    async with (
        front_end(open_registry(url), tmp_path, queue) as remote,
        front_end(local, tmp_path, MemoryQueue()) as near,
    ):
        for path in PICTURES:
            answer = await remote.get(path)
            assert answer.status_code == 200, path
            assert answer.content == (await near.get(path)).content, path
        summary = (await remote.get("/models")).json()["models"][0]
    assert summary["has_thumbnails"]
    assert summary["has_codebook"]
    assert not (tmp_path / "cache" / "files" / manifest.files[TRANSFORMER_FILE]).exists()


@pytest.mark.anyio
async def test_a_version_is_activated_and_a_damaged_one_refused(
    served: None, url: str, bucket: Bucket, queue: MemoryQueue, folders: Path, tmp_path: Path
) -> None:
    async with front_end(open_registry(url), tmp_path, queue) as client:
        await until_ready(client)
        assert await generate(client) == "1"
        answer = await activate(client, "2")
        assert (answer.status_code, answer.json()["state"]) == (200, "serving")
        assert answer.json()["previous"] == "1"
        assert await generate(client) == "2"
        publish_damaged(bucket, folders)
        assert_problem(await activate(client, "3"), 409, "version")
        assert await generate(client) == "2"
        assert open_registry(url).previous("tiny") == "1"


@pytest.mark.anyio
async def test_the_version_before_is_the_one_that_is_active_now(
    registry: Registry, another: Registry, folders: Path, tmp_path: Path, queue: MemoryQueue
) -> None:
    """Not the one that was active some seconds ago."""
    publish(registry, folders, "1", "2", "3")
    async with front_end(another, tmp_path, queue) as client:
        await client.get("/models")
        assert another.current("tiny") == "1"
        registry.activate("tiny", "2")
        answer = await activate(client, "3", wait_seconds=0)
        assert answer.status_code == 200, answer.text
        assert answer.json()["previous"] == "2"


def publish_damaged(bucket: Bucket, folders: Path) -> None:
    for path in sorted((folders / "tiny" / "3").iterdir()):
        content = path.read_bytes()
        if path.name == TRANSFORMER_FILE:
            content = content[:-1]
        bucket.write(f"tiny/3/{path.name}", content)


@pytest.mark.anyio
async def test_while_the_storage_hangs_images_are_made_and_nobody_is_blocked(
    served: None, url: str, queue: MemoryQueue, object_store: ObjectStore, tmp_path: Path
) -> None:
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        clock = asyncio.get_running_loop().time
        while True:
            before = clock()
            await asyncio.sleep(0.01)
            longest = max(longest, clock() - before)

    async with front_end(open_registry(url), tmp_path, queue) as client:
        await until_ready(client)
        assert await generate(client) == "1"
        assert (await client.get("/models")).status_code == 200
        object_store.hang()
        watching = asyncio.create_task(watch())
        try:
            activating = asyncio.create_task(activate(client, "2"))
            while not activating.done():
                assert await generate(client) == "1"
                assert [one["name"] for one in (await client.get("/models")).json()["models"]] == [
                    "tiny"
                ]
            problem = assert_problem(await activating, 503)
            assert problem["type"] == "urn:masc:problem:storage-down"
            assert url not in problem["detail"]
        finally:
            object_store.go_on()
            watching.cancel()
        assert longest < 2.0  # requests are given up after ten
        assert (await activate(client, "2")).json()["state"] == "serving"
        assert await generate(client) == "2"
