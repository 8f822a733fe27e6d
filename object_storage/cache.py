"""Files of bundles on this machine, by their SHA-256, and bundles as folders of links to them.

::

    <root>/files/<sha256>                          whole, and as its name says
    <root>/files/.part-<sha256>                    on its way; locked by whoever fetches it
    <root>/bundles/<sha256 of the manifest>/<name>/<version>/   as in a folder of bundles

Processes of a machine share it. What a killed one has begun the next one goes on with. Beyond the
bound what was used least recently goes, but nothing of the last hour, for somebody may be about to
load it; what is loaded, or open, outlives its name.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from masc_core.bundle.manifest import MANIFEST_FILE, Manifest, check_hash
from masc_core.io.bounded import open_lock
from masc_core.io.files import atomic_write, flush, sha256_file, temporary_sibling, writing

KEPT_SECONDS = 3600.0
PART_PREFIX = ".part-"

Fetch = Callable[[int], Iterator[bytes]]  # content from an offset on


class FileCache:
    """Files under a folder that take about so many bytes at most."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._files, self._bundles = root / "files", root / "bundles"
        self._max_bytes = max_bytes

    def file(self, sha256: str, location: str, fetch: Fetch) -> Path:
        """A file by its hash, fetched if it is not here or is damaged.

        Raises
        ------
        ArtifactError : what was fetched has another hash, or cannot be written
        """
        path = self._files / sha256
        with writing(path):
            self._files.mkdir(parents=True, exist_ok=True)
            if not self._is_here(path):
                self._fetch(path, location, fetch)
                self._shrink()
        return path

    def folder(
        self,
        manifest: Manifest,
        text: bytes,
        location: Callable[[str], str],
        fetch: Mapping[str, Fetch],
    ) -> Path:
        """The folder of a version, complete; errors as of `file`."""
        bundle = self._bundles / hashlib.sha256(text).hexdigest()
        folder = bundle / manifest.name / manifest.version

        def fill() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            os.utime(bundle)
            for name, sha256 in manifest.files.items():
                _link(self.file(sha256, location(name), fetch[name]), folder / name)
                os.utime(bundle)
            atomic_write(folder / MANIFEST_FILE, text)

        with writing(folder):
            try:
                fill()
            except FileNotFoundError:  # another process has just removed a part of it as old
                fill()
        return folder

    def _is_here(self, path: Path) -> bool:
        """Whether a file is whole; another one goes."""
        if not path.exists():
            return False
        if sha256_file(path) == path.name:
            os.utime(path)
            return True
        path.unlink(missing_ok=True)
        return False

    def _fetch(self, path: Path, location: str, fetch: Fetch) -> None:
        part = path.with_name(PART_PREFIX + path.name)
        while not path.exists():
            with open_lock(part) as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed
                if os.fstat(file.fileno()).st_nlink == 0 or path.exists():
                    continue  # whoever had the lock is done with it
                begun = file.seek(0, os.SEEK_END)
                sha256 = _append(part, file, fetch(begun))
                if sha256 != path.name and begun:  # what was begun may have been damaged
                    file.truncate(0)
                    sha256 = _append(part, file, fetch(0))
                if sha256 != path.name:
                    part.unlink()
                    check_hash(location, sha256, path.name)
                part.replace(path)
        flush(path.parent)

    def _shrink(self) -> None:
        """Remove what was used least recently, until the rest fits."""
        until = time.time() - KEPT_SECONDS
        files, bundles = _by_age(self._files), _by_age(self._bundles)
        excess = sum(status.st_size for _, status in files) - self._max_bytes
        while excess > 0:
            for path, status in files:
                with suppress(FileNotFoundError):  # another process does the same
                    now = path.stat()  # it may have been used since it was listed
                    if excess > 0 and now.st_nlink == 1 and now.st_mtime < until:
                        path.unlink()
                        excess -= status.st_size
            if not bundles or bundles[0][1].st_mtime >= until:
                return
            bundle, _ = bundles.pop(0)
            with suppress(FileNotFoundError):
                if bundle.stat().st_mtime < until:
                    shutil.rmtree(bundle, ignore_errors=True)


def _append(path: Path, file: BinaryIO, content: Iterator[bytes]) -> str:
    """Write what is missing of a file; the SHA-256 of all of it."""
    file.seek(0, os.SEEK_END)
    file.writelines(content)
    file.flush()
    os.fsync(file.fileno())
    return sha256_file(path)


def _link(file: Path, name: Path) -> None:
    if name.exists() and name.samefile(file):
        return
    temporary = temporary_sibling(name)
    temporary.hardlink_to(file)
    temporary.replace(name)


def _by_age(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """What is in a folder, what was used least recently first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        with suppress(FileNotFoundError):
            found.append((path, path.stat()))
    return sorted(found, key=lambda entry: entry[1].st_mtime)
