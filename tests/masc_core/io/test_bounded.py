from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from masc_core.io.bounded import check_file, open_file, open_lock, parse_json, read_file
from masc_core.io.files import read_json, sha256_file
from tests.hostile_files import IRREGULAR, memory_below, sparse


@pytest.mark.parametrize("kind", IRREGULAR)
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    IRREGULAR[kind](path)
    for read in (open_file, check_file, read_file, sha256_file, read_json, open_lock):
        with pytest.raises(OSError, match=r"not a regular file|No such device|Is a directory"):
            read(path)


def test_a_fifo_that_takes_the_place_of_a_file_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    os.mkfifo(path)
    regular = Path(__file__).stat()
    monkeypatch.setattr(Path, "stat", lambda _: regular)  # what was there a moment before
    with pytest.raises(OSError, match="not a regular file"):
        open_file(path)


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "file").write_bytes(b"content")
    (tmp_path / "file").symlink_to("..data/file")  # as Kubernetes mounts volumes
    assert read_file(tmp_path / "file") == b"content"
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()


def test_more_than_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    sparse(path, 3_000_000_000)
    with memory_below(1 << 20):
        for read in (open_file, check_file, read_file, sha256_file):
            with pytest.raises(OSError, match="has 3,000,000,000 bytes, more than 1,000"):
                read(path, 1000)
    sparse(path, 1000)
    assert len(read_file(path, 1000)) == 1000


@pytest.mark.parametrize("path", ["/proc/self/pagemap", "/proc/kmsg", "/proc/self/mem"])
def test_files_of_the_kernel_have_no_end(path: str) -> None:
    try:
        assert read_file(path) == b""
        assert sha256_file(path) == hashlib.sha256(b"").hexdigest()
    except PermissionError:
        pass  # whose user is not root


def test_a_lock_is_made_and_its_content_stays(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    open_lock(path).close()
    assert path.read_bytes() == b""
    path.write_bytes(b"content")
    open_lock(path).close()
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "[" * 10**6 + "]" * 10**6])
def test_deeply_nested_json_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(content)
    (tmp_path / "file").write_text(content)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "file")
