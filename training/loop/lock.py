"""The lock of a folder that one process at a time may write to."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from masc_core.errors import ConfigError

LOCK = ".lock"


def lock_folder(folder: Path) -> IO[str]:
    """Make the folder and lock it, until the returned file is closed or the process ends.

    Raises
    ------
    ConfigError
        The folder cannot be written, or another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ConfigError(f"{folder}: another run is using this folder") from error
    return file
