"""Atomic replacement and hashing."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from masc_core.errors import ArtifactError
from masc_core.io.bounded import parse_json
from masc_core.io.files import (
    LEFTOVER_SECONDS,
    TEMPORARY_PREFIX,
    atomic_folder,
    atomic_path,
    atomic_write,
    read_json,
    reading,
    sha256_file,
    write_json,
    writing,
)

ROOT = Path(__file__).parents[3]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupted_write(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise KeyboardInterrupt


def test_sha256_file_agrees_with_hashlib(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    path = tmp_path / "blob"
    path.write_bytes(content)
    assert sha256_file(path) == hashlib.sha256(content).hexdigest()


def test_a_file_that_grows_meanwhile_is_hashed_up_to_its_length(tmp_path: Path) -> None:
    path, size = tmp_path / "log", 1 << 20
    path.write_bytes(bytes(size))
    deadline = time.monotonic() + 10
    with ThreadPoolExecutor(1) as pool:
        hashing = pool.submit(sha256_file, path)
        while not hashing.done():
            size += 1 << 16  # faster than a file is read
            os.truncate(path, size if time.monotonic() < deadline else 0)
    assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("context", "what"), [(reading, "cannot be read"), (writing, "cannot be written")]
)
def test_why_a_file_fails_is_said_once(
    context: Callable[[Path], AbstractContextManager[None]], what: str
) -> None:
    for error in (
        OSError(28, "No space left on device", "b.npz"),
        OSError("No space left on device"),
    ):
        with pytest.raises(ArtifactError) as caught, context(Path("a.npz")):
            raise error
        assert str(caught.value) == f"a.npz: {what}: No space left on device"


def test_atomic_write_creates_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "name"
    atomic_write(path, b"one")
    atomic_write(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert names(tmp_path) == ["name"]


def test_a_block_that_wrote_nothing_raises_its_own_error(tmp_path: Path) -> None:
    for write in (atomic_path, atomic_folder):
        with pytest.raises(KeyboardInterrupt), write(tmp_path / "name"):
            raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_json_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, 2.5], "b": "é"})
    assert read_json(path) == {"a": [1, 2.5], "b": "é"}
    assert path.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", "-1e999", "1" * 300 + "e99"])
def test_what_is_not_finite_is_no_json(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'{{"a": [{value}]}}')
    with pytest.raises(ValueError, match=r"^.{1,220} is not a figure$"):
        read_json(path)
    assert not np.isfinite(parse_json(path.read_bytes(), allow_nan=True)["a"][0])
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match=r"a\.json: cannot be written: Out of range float"):
        write_json(path, {"a": [float(value)]})
    assert path.read_bytes() == before


@pytest.mark.parametrize("value", ["9" * 400, "-1" + "0" * 309])
def test_an_integer_beyond_all_figures_is_none(value: str) -> None:
    with pytest.raises(ValueError, match=r"^.{1,220} is not a figure$"):
        parse_json(f"[{value}]")


def test_a_failing_block_keeps_the_old_content_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "name"
    atomic_write(path, b"old")
    with pytest.raises(KeyboardInterrupt):
        interrupted_write(path)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["name"]


def test_the_old_content_is_there_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "name"
    atomic_write(path, b"old")
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_writers_that_look_at_the_suffix_find_it(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "x.npz") as temporary:
        np.savez(temporary, a=np.arange(3))
    assert names(tmp_path) == ["x.npz"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "name"):
        pass


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    atomic_write(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_killed_writer_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "name"
    atomic_write(path, b"old")
    program = (
        "import os, sys\n"
        "from masc_core.io.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary:\n"
        "    temporary.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert path.read_bytes() == b"old"


def test_a_private_file_gets_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with atomic_path(tmp_path / "file") as temporary:
        temporary.write_bytes(b"x")
        temporary.chmod(0o600)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_permissions_can_be_told(tmp_path: Path, mode: int) -> None:
    for content in (b"new", b"replaced"):
        atomic_write(tmp_path / "file", content, mode)
        assert (tmp_path / "file").stat().st_mode & 0o777 == mode
    assert (tmp_path / "file").read_bytes() == b"replaced"


def interrupted_folder(path: Path) -> None:
    with atomic_folder(path) as draft:
        (draft / "half").write_bytes(b"half of it")
        raise KeyboardInterrupt


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "new" / "1") as draft:
        (draft / "file").write_bytes(b"all")
        assert not (tmp_path / "new" / "1").exists()
    assert names(tmp_path / "new" / "1") == ["file"]
    assert names(tmp_path / "new") == ["1"]
    for path in (tmp_path / "new" / "2", tmp_path / "other" / "1"):
        with pytest.raises(KeyboardInterrupt):
            interrupted_folder(path)
    assert names(tmp_path) == ["new"]
    assert names(tmp_path / "new") == ["1"]


def overtaken_folder(path: Path) -> None:
    with atomic_folder(path):
        path.mkdir()
        (path / "theirs").write_bytes(b"")


def test_a_folder_that_came_meanwhile_stays(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not empty"):
        overtaken_folder(tmp_path / "1")
    assert names(tmp_path) == ["1"]


def test_what_a_killed_process_left_is_removed_and_nothing_that_is_in_use(tmp_path: Path) -> None:
    old = time.time() - 2 * LEFTOVER_SECONDS
    (tmp_path / ".tmp-left").mkdir()
    (tmp_path / ".tmp-new").mkdir()
    (tmp_path / ".tmp-file").write_bytes(b"")
    for name in (".tmp-left", ".tmp-file"):
        os.utime(tmp_path / name, (old, old))
    with atomic_folder(tmp_path / "1") as busy:
        os.utime(busy, (old, old))
        with atomic_folder(tmp_path / "2"):
            pass
    assert names(tmp_path) == [".tmp-file", ".tmp-new", "1", "2"]


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, list[str]]] = []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        there = [name for name in names(tmp_path) if not name.startswith(TEMPORARY_PREFIX)]
        flushed.append((path.name.rpartition("-")[2], there))

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / ".tmp-left").mkdir()
    os.utime(tmp_path / ".tmp-left", (0, 0))
    before = names(Path("/proc/self/fd"))
    atomic_write(tmp_path / "file", b"")
    with atomic_folder(tmp_path / "folder"):
        pass
    parent = tmp_path.name.rpartition("-")[2]
    assert flushed == [
        ("file", []),
        (parent, ["file"]),
        ("folder", ["file"]),
        (parent, ["file", "folder"]),
    ]
    assert names(Path("/proc/self/fd")) == before  # nothing is left open


def removed_folder(path: Path) -> None:
    with atomic_folder(path) as draft:
        draft.rmdir()
        raise KeyboardInterrupt


def test_what_went_wrong_is_told_even_if_there_is_nothing_to_tidy_up(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        removed_folder(tmp_path / "1")


def test_what_cannot_be_written_is_named_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x.toml", tmp_path / "none" / "x.toml"):
        with pytest.raises(OSError, match=rf"'{path}'$"):
            atomic_write(path, b"")
    with (
        pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/x'$"),
        atomic_path(tmp_path / "x"),
        open("/dev/full", "wb") as full,  # noqa: PTH123 - no path of ours
    ):
        full.write(b"x")
