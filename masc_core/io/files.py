"""Files that are whole or absent: atomic replacement, and the SHA-256 of what is there.

A reader sees the old content or the new one, never a part: the content goes to a temporary file in
the same folder, is flushed to the disk, and takes the name in one ``os.replace``. A process killed
on the way leaves at most a hidden ``.tmp-*`` file, or folder, which the next one to make a folder
in that place removes. Errors of the operating system pass through, unless `reading` or `writing`
makes an `ArtifactError` of them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from masc_core.errors import ArtifactError
from masc_core.io.bounded import open_file, parse_json, read_file, size_of

TEMPORARY_PREFIX = ".tmp-"
LEFTOVER_SECONDS = 60.0  # a folder has its lock long before
HASH_BYTES = 1 << 20  # at a time


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise an `ArtifactError` that names the path where it cannot be read."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(path, f"cannot be read: {error.strerror or error}") from error


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise an `ArtifactError` that names the path where it cannot be written."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(path, f"cannot be written: {error.strerror or error}") from error


@contextmanager
def atomic_path(path: str | os.PathLike[str], mode: int | None = None) -> Iterator[Path]:
    """Lend a temporary path; what was written there replaces ``path`` when the block ends well.

    The temporary path keeps the file's name at its end, so that writers which look at the suffix
    (``numpy.savez``, Pillow) are content. When the block raises, the temporary file is removed and
    ``path`` keeps what it had. ``mode`` is the file's permissions, by default those of new files.
    """
    path = Path(path)
    temporary = temporary_sibling(path)
    try:
        permissions = _usual_mode(temporary) if mode is None else mode
        yield temporary
        temporary.chmod(permissions)  # some writers make files that nobody else can read
        flush(temporary)
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # where it could not be made, it need not go
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in {None, os.fspath(temporary)}:
            error.filename = os.fspath(path)  # which people know of
        raise
    flush(path.parent)


def atomic_write(path: str | os.PathLike[str], content: bytes, mode: int | None = None) -> None:
    """Replace the content of ``path`` in one go; see `atomic_path`."""
    with atomic_path(path, mode) as temporary:
        temporary.touch(0o600)  # nobody else reads it before it has its permissions
        temporary.write_bytes(content)


def write_json(path: str | os.PathLike[str], value: Any, indent: int = 2) -> None:  # noqa: ANN401 - whatever JSON can hold
    """Replace a JSON file in one go; an `ArtifactError` where a value is NaN or infinite."""
    try:
        text = json.dumps(value, indent=indent, allow_nan=False)
    except ValueError as error:
        raise ArtifactError(path, f"cannot be written: {error}") from error
    atomic_write(path, f"{text}\n".encode())


def read_json(path: str | os.PathLike[str]) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """Read a JSON file, as `parse_json` does."""
    return parse_json(read_file(path))


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Lend a new folder, which takes the name ``path`` when the block ends well.

    The folders above it are made. When the block raises, or something is at ``path`` by its end,
    all that it wrote is removed.
    """
    is_parent_new = not path.parent.exists()
    _remove_leftovers(path.parent)
    temporary = temporary_sibling(path)
    try:
        with _locked_folder(temporary):
            yield temporary
            flush(temporary)
            temporary.rename(path)  # fails if someone else has made it meanwhile
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_parent_new:
            with suppress(OSError):  # someone else has put something there
                path.parent.rmdir()
        raise
    flush(path.parent)


def sha256_file(path: str | os.PathLike[str], max_bytes: int | None = None) -> str:
    """SHA-256 of a file's content, as 64 lower-case hexadecimal digits; `open_file` opens it."""
    digest = hashlib.sha256()
    with open_file(path, max_bytes) as file:
        left = size_of(file)
        while left > 0 and (block := file.read(min(left, HASH_BYTES))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def temporary_sibling(path: Path) -> Path:
    """Return an unused hidden name beside ``path``, on the same file system."""
    return path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}-{path.name}")


def flush(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _usual_mode(unused: Path) -> int:
    """Permissions of a new file here, found by making one: the umask cannot be read safely."""
    unused.touch()
    mode = stat.S_IMODE(unused.stat().st_mode)
    unused.unlink()
    return mode


@contextmanager
def _locked_folder(path: Path) -> Iterator[None]:
    """Make a folder and hold its lock, by which others know that somebody is at work there."""
    path.mkdir(parents=True)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # there are file systems without locks for folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(parent: Path) -> None:
    """Remove folders of `atomic_folder` whose process was killed."""
    for path in parent.glob(f"{TEMPORARY_PREFIX}*"):
        with suppress(OSError):  # it is gone, or in use
            if not path.is_dir() or path.stat().st_mtime > time.time() - LEFTOVER_SECONDS:
                continue
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(descriptor)
