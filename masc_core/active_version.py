"""Which version of a model is active, and which ones were before it.

``current`` names the active version; ``history`` holds, one a line, what has been activated, each
version once and the latest last. Whatever stands behind the active version there was rolled back
from and counts no more, so ``current`` alone decides: a process that is killed between the two
files leaves a choice and its past that fit. A folder without ``history`` has no past yet.
This module does not know whether a version exists or is whole.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from masc_core.files import atomic_write

CURRENT_FILE = "current"
HISTORY_FILE = "history"
LOCK_FILE = ".lock"


class ActiveVersion:
    """The choice among the versions in a model's folder.

    Errors of the operating system pass through, as does `UnicodeDecodeError` from what is no text.

    Parameters
    ----------
    folder : of the model
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / CURRENT_FILE
        self._history = folder / HISTORY_FILE
        self._lock = folder / LOCK_FILE

    def read(self) -> str:
        """Name of the active version, as the file has it; `FileNotFoundError` where none is."""
        return self.path.read_text(encoding="utf-8").strip()

    def earlier(self) -> tuple[str, ...]:
        """Versions that were active before the active one, the latest last."""
        activated = self._activated()
        active = self.read()
        return activated[: activated.index(active)] if active in activated else activated

    def choose(self, version: str) -> None:
        """Make a version the active one; the one that was is its predecessor. Needs `locked`."""
        past: list[str] = []
        if self.path.is_file():
            past = [*self.earlier(), self.read()]
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
            return tuple(self._history.read_text(encoding="utf-8").split())
        except FileNotFoundError:
            return ()
