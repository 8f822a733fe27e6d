from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from masc_core.bundle.registry import Registry
from object_storage.bucket import Bucket
from object_storage.cache import FileCache
from object_storage.registry import BucketRegistry, open_registry
from tests.object_store import ObjectStore, is_installed
from tests.tiny_bundle import save_tiny_bundle


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    """An S3 server that lives as long as the tests; whoever stops it starts it again."""
    if not is_installed():
        pytest.skip("needs ceph-mon, ceph-osd, radosgw and ceph of Debian")
    with ObjectStore() as store:
        yield store


@pytest.fixture
def url(object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix in a bucket of its own, for the processes of a machine with an empty cache."""
    for name, value in object_store.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASC_MODELS_CACHE", str(tmp_path / "cache"))
    return f"{object_store.make_bucket(f'models-{secrets.token_hex(4)}')}/a/prefix"


@pytest.fixture
def bucket(url: str) -> Bucket:
    return Bucket(url)


@pytest.fixture
def registry(url: str) -> Registry:
    return open_registry(url)


@pytest.fixture
def another(url: str, tmp_path: Path) -> Registry:
    """The same models from another machine."""
    return BucketRegistry(Bucket(url), FileCache(tmp_path / "another", 1 << 30))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 to 3 of the tiny model, as files."""
    root = tmp_path_factory.mktemp("folders")
    for version in ("1", "2", "3"):
        save_tiny_bundle(root, version=version, seed=int(version))
    return root
