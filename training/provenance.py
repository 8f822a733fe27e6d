"""What a published model was made with: programs, and the state of the source code."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue

SOURCES = Path(__file__).parent.parent
GIT_SECONDS = 10.0


def made_with(*others: str) -> dict[str, JsonValue]:
    """Versions of the programs and of other packages, and of a checkout its commit."""
    made: dict[str, JsonValue] = {
        "masc": _version("masc"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "safetensors": _version("safetensors"),
    }
    made |= {name: _version(name) for name in others}
    return made | _commit(SOURCES)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit(folder: Path) -> dict[str, JsonValue]:
    """``commit``, and whether the sources differ from it; nothing where there is no checkout."""
    if not (folder / ".git").exists():
        return {}
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changed is None:
        return {}
    return {"commit": commit, "commit_changed": bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    program = shutil.which("git")
    if program is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - our own words
            [program, "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
