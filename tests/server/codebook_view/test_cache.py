from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from masc_core.bundle.manifest import PRIOR_FILE, SAMPLES_FILE, Manifest
from masc_core.bundle.registry import Registry
from masc_core.errors import ArtifactError, StorageDownError
from server.codebook_view.cache import MAX_VERSIONS, CodebookCache, VersionCache, read_listed
from tests.server.asgi import until
from tests.server.pictured_model import PRIOR, samples, write_pictured


class Maker:
    """Makes the version's name, and notes which and how many at once."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.threads = 0
        self.most = 0

    def __call__(self, manifest: Manifest) -> str:
        self.threads += 1
        self.most = max(self.most, self.threads)
        self.gate.wait()
        self.made.append(manifest.version)
        self.threads -= 1
        return manifest.version


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_pictured(tmp_path_factory.mktemp("models"))


def versions(manifest: Manifest, *names: str) -> list[Manifest]:
    return [manifest.model_copy(update={"version": name}) for name in names]


def test_those_shown_last_are_kept(manifest: Manifest) -> None:
    maker = Maker()
    kept = VersionCache(maker)
    first, *others = versions(manifest, *(f"v{i}" for i in range(MAX_VERSIONS + 1)))

    async def show() -> None:
        for each in [first, *others[:-1], first, others[-1], first]:
            assert await kept.get(each) == each.version

    asyncio.run(show())
    assert maker.made == [each.version for each in [first, *others]]


def test_who_waits_holds_no_thread(manifest: Manifest) -> None:
    maker = Maker()
    maker.gate.clear()
    kept = VersionCache(maker)
    wanted = versions(manifest, "v1", "v2") * 10

    async def show() -> list[str]:
        before = threading.active_count()
        waiting = [asyncio.create_task(kept.get(each)) for each in wanted]
        await until(lambda: maker.threads == 1)
        assert threading.active_count() == before + 1
        maker.gate.set()
        return await asyncio.gather(*waiting)

    assert asyncio.run(show()) == ["v1", "v2"] * 10
    assert (sorted(maker.made), maker.most) == (["v1", "v2"], 1)


def test_what_failed_is_tried_again(manifest: Manifest) -> None:
    def make(_: Manifest) -> str:
        failures.append("damaged")
        if len(failures) == 1:
            raise ArtifactError("a file", "is damaged")
        return "made"

    failures: list[str] = []
    kept = VersionCache(make)
    with pytest.raises(ArtifactError):
        asyncio.run(kept.get(manifest))
    assert asyncio.run(kept.get(manifest)) == "made"


class Away(Registry):
    """A registry whose files cannot be fetched for now."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.is_away = True
        self.asked = 0

    def file(self, manifest: Manifest, name: str) -> Path:
        self.asked += 1
        if self.is_away:
            time.sleep(0.1)
            raise StorageDownError("s3://b/x", "cannot be reached")
        return super().file(manifest, name)


def test_a_sheet_that_cannot_be_fetched_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_pictured(tmp_path)
    registry = Away(tmp_path)
    cache = CodebookCache(registry)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(cache.has_thumbnails, [manifest] * 8)) == [False] * 8
    with pytest.raises(StorageDownError):
        asyncio.run(cache.thumbnails(manifest))
    assert registry.asked == 1
    registry.is_away = False
    assert not cache.has_thumbnails(manifest)
    monkeypatch.setattr("server.codebook_view.cache.FAILED_SECONDS", 0.0)
    assert cache.has_thumbnails(manifest)
    assert asyncio.run(cache.thumbnails(manifest))


def test_the_prior_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_pictured(tmp_path)
    opened: list[str] = []
    real = os.open

    def note(path: str, flags: int, mode: int = 0o777) -> int:
        opened.append(Path(path).name)
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", note)
    shown = asyncio.run(CodebookCache(Registry(tmp_path)).codebook(manifest))
    assert (shown.codebook.prior.labels == PRIOR.labels).all()
    assert opened.count(PRIOR_FILE) == 1


def test_a_file_that_was_altered_or_is_gone_is_refused(tmp_path: Path) -> None:
    manifest = write_pictured(tmp_path)
    path = tmp_path / "tiny" / "v1" / SAMPLES_FILE
    path.write_bytes(samples()[:-1])
    with pytest.raises(ArtifactError, match=r"samples\.png: is truncated or altered"):
        read_listed(Registry(tmp_path), manifest, SAMPLES_FILE)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"samples\.png: cannot be read: No such file"):
        read_listed(Registry(tmp_path), manifest, SAMPLES_FILE)
