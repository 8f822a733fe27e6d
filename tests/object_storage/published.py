"""Versions that tests put into a registry."""

from __future__ import annotations

import shutil
from pathlib import Path

from masc_core.bundle.registry import Registry


def publish(registry: Registry, folders: Path, *versions: str) -> None:
    """Publish versions of the tiny model, the first of which becomes the active one."""
    for version in versions:
        with registry.new_version("tiny", version) as (folder, _):
            shutil.copytree(folders / "tiny" / version, folder, dirs_exist_ok=True)
    registry.activate("tiny", versions[0])
