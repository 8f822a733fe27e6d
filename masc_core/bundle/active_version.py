"""Which version of a model is active, and which ones were before it.

``current`` names the active version; ``history`` holds, one a line, what has been activated, each
version once and the latest last. Whatever stands behind the active version there was rolled back
from and counts no more, so ``current`` alone decides: a process that is killed between the two
files leaves a choice and its past that fit. A folder without ``history`` has no past yet.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from masc_core.errors import ArtifactError
from masc_core.io.files import atomic_write

CURRENT_FILE = "current"
HISTORY_FILE = "history"
LOCK_FILE = ".lock"


class ActiveVersion:
    """The choice among the versions in a model's folder.

    Parameters
    ----------
    folder : of the model

    Raises
    ------
    ArtifactError : from every method: one of the files cannot be read; names it
    OSError : from those that write: that cannot be done
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / CURRENT_FILE
        self._history = folder / HISTORY_FILE
        self._lock = folder / LOCK_FILE

    def read(self) -> str:
        """Name of the active version, as the file has it; `FileNotFoundError` where none is."""
        return _read(self.path).strip()

    def stamp(self) -> tuple[int, int]:
        """Changes whenever a version is made active, also if it was so before."""
        status = self.path.stat()
        return status.st_mtime_ns, status.st_ino  # the file is replaced, never written over

    def earlier(self, active: str) -> tuple[str, ...]:
        """Versions that were active before ``active``, which is so now, the latest last."""
        activated = self._activated()
        return activated[: activated.index(active)] if active in activated else activated

    def choose(self, version: str) -> None:
        """Make a version the active one; the one that was is its predecessor. Needs `locked`."""
        past: list[str] = []
        if self.path.is_file():
            active = self.read()
            past = [*self.earlier(active), active]
        kept = [one for one in past if one != version]
        atomic_write(self._history, "".join(f"{one}\n" for one in [*kept, version]).encode())
        self.go_back(version)

    def go_back(self, version: str) -> None:
        """Make one of the `earlier` versions the active one again. Needs `locked`."""
        atomic_write(self.path, f"{version}\n".encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other threads and processes from choosing until the block ends."""
        with self._lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # given back when the file is closed
            yield

    def _activated(self) -> tuple[str, ...]:
        try:
            return tuple(_read(self._history).split())
        except FileNotFoundError:
            return ()


def _read(path: Path) -> str:
    """Content of a file; `FileNotFoundError` where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(path, f"cannot be read: {error}") from error
