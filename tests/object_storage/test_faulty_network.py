"""Answers of the object store that are lost, or come late."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from masc_core.bundle.manifest import MANIFEST_FILE
from masc_core.bundle.registry import CURRENT_FILE, HISTORY_FILE, Registry
from masc_core.errors import StorageDownError
from object_storage.bucket import Bucket, ConflictError
from object_storage.registry import CLAIM_FILE, open_registry
from tests.object_storage.proxy import Proxy
from tests.object_storage.published import publish
from tests.object_store import ObjectStore


@pytest.fixture
def proxy(object_store: ObjectStore, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy(object_store.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def behind(proxy: Proxy, url: str) -> Registry:
    """The registry through the proxy."""
    return open_registry(url)


def test_a_rollback_whose_answer_is_lost_goes_back_one_version(
    registry: Registry, behind: Registry, proxy: Proxy, folders: Path
) -> None:
    publish(registry, folders, "1", "2", "3")
    for version in ("2", "3"):
        registry.activate("tiny", version)
    proxy.lose_once("PUT", f"/tiny/{CURRENT_FILE}")
    assert behind.rollback("tiny") == "2"
    assert len(proxy.lost) == 1
    assert behind.current("tiny") == "2"


@pytest.mark.parametrize("name", [HISTORY_FILE, CURRENT_FILE])
def test_an_activation_whose_answer_is_lost_is_made_once(
    registry: Registry, behind: Registry, proxy: Proxy, folders: Path, name: str
) -> None:
    publish(registry, folders, "1", "2")
    proxy.lose_once("PUT", f"/tiny/{name}")
    behind.activate("tiny", "2")
    assert len(proxy.lost) == 1
    assert (behind.current("tiny"), behind.previous("tiny")) == ("2", "1")


@pytest.mark.parametrize("name", [CLAIM_FILE, MANIFEST_FILE])
def test_a_publication_whose_answer_is_lost_is_there(
    behind: Registry, proxy: Proxy, bucket: Bucket, folders: Path, name: str
) -> None:
    proxy.lose_once("PUT", f"/tiny/1/{name}")
    publish(behind, folders, "1")
    assert len(proxy.lost) == 1
    assert behind.versions("tiny") == ("1",)
    assert f"1/{CLAIM_FILE}" not in bucket.sizes("tiny")


@pytest.mark.parametrize("there", [b"theirs", b"ours!", b"longer than ours"])
def test_what_another_one_wrote_is_a_conflict(bucket: Bucket, there: bytes) -> None:
    bucket.write("a", there)
    with pytest.raises(ConflictError):
        bucket.write("a", b"ours..")


def test_files_may_take_longer_than_what_is_small(
    proxy: Proxy, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("object_storage.bucket.REQUEST_SECONDS", 1)
    monkeypatch.setattr("object_storage.bucket.RETRY_SECONDS", 1)
    content = secrets.token_bytes(9 << 20)
    (tmp_path / "large").write_bytes(content)
    proxy.seconds = lambda method, _: 1.5 * (method in {"PUT", "GET"})
    bucket = Bucket(url)
    bucket.upload("large", tmp_path / "large")
    assert b"".join(bucket.parts("large", 0, len(content))) == content
    with pytest.raises(StorageDownError):
        bucket.read("large", 1 << 30)


def test_a_part_that_comes_too_late_is_asked_for_again(
    proxy: Proxy, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("object_storage.bucket.PART_SECONDS", 1)
    content = secrets.token_bytes(9 << 20)
    (tmp_path / "large").write_bytes(content)
    late = {"PUT": 1, "GET": 1}

    def seconds(method: str, _: str) -> float:
        late[method] = late.get(method, 0) - 1
        return 1.5 if late[method] == 0 else 0.0

    proxy.seconds = seconds
    bucket = Bucket(url)
    bucket.upload("large", tmp_path / "large")
    assert b"".join(bucket.parts("large", 0, len(content))) == content
    assert late["PUT"] < 0
    assert late["GET"] < 0
