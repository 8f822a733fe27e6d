from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import object_storage.cache
from masc_core.bundle.manifest import MANIFEST_FILE, read_manifest
from masc_core.errors import ArtifactError
from object_storage.cache import KEPT_SECONDS, FileCache

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()
AGED = time.time() - KEPT_SECONDS - 60


class Source:
    """Content from an offset on, by pieces; it may break off."""

    def __init__(self, content: bytes = CONTENT, breaks_at: int | None = None) -> None:
        self.content, self.breaks_at = content, breaks_at
        self.starts: list[int] = []

    def __call__(self, start: int) -> Iterator[bytes]:
        self.starts.append(start)
        for at in range(start, len(self.content), 1000):
            if self.breaks_at is not None and at >= self.breaks_at:
                raise ArtifactError("s3://b/f", "breaks off")
            yield self.content[at : at + 1000]


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache(tmp_path, 1 << 20)


def test_a_file_is_fetched_once(cache: FileCache) -> None:
    source = Source()
    assert cache.file(SHA256, "s3://b/f", source).read_bytes() == CONTENT
    assert cache.file(SHA256, "s3://b/f", source).read_bytes() == CONTENT
    assert source.starts == [0]


def test_what_broke_off_goes_on(cache: FileCache) -> None:
    with pytest.raises(ArtifactError, match="breaks off"):
        cache.file(SHA256, "s3://b/f", Source(breaks_at=3000))
    rest = Source()
    assert cache.file(SHA256, "s3://b/f", rest).read_bytes() == CONTENT
    assert rest.starts == [3000]


def test_what_was_begun_and_damaged_is_fetched_anew(cache: FileCache, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for begun in (b"\0" * 500, b"\0" * (len(CONTENT) + 7)):
        (tmp_path / "files" / f".part-{SHA256}").write_bytes(begun)
        path = cache.file(SHA256, "s3://b/f", Source())
        assert path.read_bytes() == CONTENT
        path.unlink()


def test_a_file_that_was_damaged_here_is_fetched_anew(cache: FileCache) -> None:
    source = Source()
    cache.file(SHA256, "s3://b/f", source).write_bytes(CONTENT[:-1])
    assert cache.file(SHA256, "s3://b/f", source).read_bytes() == CONTENT
    assert source.starts == [0, 0]


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"!", b"", b"\1" + CONTENT[1:]])
def test_other_content_is_refused_and_not_kept(
    cache: FileCache, tmp_path: Path, content: bytes
) -> None:
    with pytest.raises(ArtifactError, match="s3://b/f: is truncated or altered"):
        cache.file(SHA256, "s3://b/f", Source(content))
    assert list((tmp_path / "files").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"file/files/.*cannot be written: Not a directory"):
        FileCache(tmp_path / "file", 1).file(SHA256, "s3://b/f", Source())


def _fetch(root: Path, counted: Path) -> None:
    def fetch(start: int) -> Iterator[bytes]:
        with counted.open("a") as file:
            file.write("x")
        for part in Source()(start):
            time.sleep(0.01)
            yield part

    assert FileCache(root, 1 << 20).file(SHA256, "s3://b/f", fetch).read_bytes() == CONTENT


def test_processes_of_a_machine_fetch_a_file_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    counted = tmp_path / "counted"
    processes = [
        context.Process(target=_fetch, args=(tmp_path / "cache", counted)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert counted.read_text() == "x"


def make_bundle(cache: FileCache, folder: Path) -> Path:
    manifest = read_manifest(folder)
    fetch = {name: Source((folder / name).read_bytes()) for name in manifest.files}
    return cache.folder(
        manifest, (folder / MANIFEST_FILE).read_bytes(), lambda name: f"s3://b/{name}", fetch
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_used_least_recently_goes_beyond_the_bound(folders: Path, tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 1)
    versions = [folders / "tiny" / version for version in "123"]
    first, second = (make_bundle(cache, folder) for folder in versions[:2])
    assert first.exists()  # of the last hour
    for path in (*(tmp_path / "files").iterdir(), first.parents[1]):
        os.utime(path, (AGED, AGED))
    third = make_bundle(cache, versions[2])
    assert not first.exists()
    kept = {*read_manifest(second).files.values(), *read_manifest(third).files.values()}
    assert names(tmp_path / "files") == kept
    assert names(second) == names(versions[1])
    assert make_bundle(cache, versions[0]).joinpath(MANIFEST_FILE).is_file()


def age(*paths: Path) -> None:
    for path in paths:
        os.utime(path, (AGED, AGED))


def test_what_is_used_after_it_was_listed_stays(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FileCache(tmp_path, 1)
    first = make_bundle(cache, folders / "tiny" / "1")
    lone = cache.file(SHA256, "s3://b/f", Source())
    age(first.parents[1], *(tmp_path / "files").iterdir())

    def use_after_listing(folder: Path) -> list[tuple[Path, os.stat_result]]:
        listed = by_age(folder)
        os.utime(lone)
        os.utime(first.parents[1])
        return listed

    by_age = object_storage.cache._by_age
    monkeypatch.setattr(object_storage.cache, "_by_age", use_after_listing)
    make_bundle(cache, folders / "tiny" / "2")
    assert lone.exists()
    assert names(first) == names(folders / "tiny" / "1")


def test_a_file_that_another_process_removes_is_fetched_again(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[Path] = []

    def remove_once(file: Path, name: Path) -> None:
        if not removed:
            removed.append(file)
            file.unlink()
        link(file, name)

    link = object_storage.cache._link
    monkeypatch.setattr(object_storage.cache, "_link", remove_once)
    folder = make_bundle(FileCache(tmp_path, 1 << 30), folders / "tiny" / "1")
    assert removed
    assert names(folder) == names(folders / "tiny" / "1")


def test_what_fits_stays_however_old(folders: Path, tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 1 << 30)
    first = make_bundle(cache, folders / "tiny" / "1")
    for path in (*(tmp_path / "files").iterdir(), first.parents[1]):
        os.utime(path, (AGED, AGED))
    make_bundle(cache, folders / "tiny" / "2")
    assert names(first) == names(folders / "tiny" / "1")
