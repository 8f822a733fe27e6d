"""Partial results of a long measurement on disk, so that an interrupted one continues.

Named tensors in ``<out>/unfinished/``, each file whole or absent, beside the settings that they
depend on. The settings are written first and deleted first: without them the rest is ignored.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from masc_core.errors import ArtifactError, ConfigError
from masc_core.io.files import read_json, write_json, writing
from masc_core.io.tensors import read_tensors, write_tensors

FOLDER, SETTINGS = "unfinished", "settings.json"


class PartialResults:
    """Results so far; nothing is kept where there is no place for them.

    Parameters
    ----------
    out : folder that this process alone writes to; None keeps nothing
    settings : what the results depend on, as JSON; a `ConfigError` names those that differ from
        what was begun in the folder
    """

    def __init__(self, out: Path | None = None, settings: Mapping[str, Any] | None = None) -> None:
        self._folder = None if out is None else out / FOLDER
        if self._folder is None:
            return
        path, wanted = self._folder / SETTINGS, json.loads(json.dumps(settings))
        if path.is_file():
            begun = _read_settings(path)
            changed = [k for k in sorted(begun.keys() | wanted) if begun.get(k) != wanted.get(k)]
            if changed:
                raise ConfigError(
                    f"out: {out} holds what is unfinished with other {', '.join(changed)}; "
                    f"finish that, choose another folder or remove {self._folder}"
                )
            return
        with writing(self._folder):
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir()
            write_json(path, wanted)

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors; an `ArtifactError` where they cannot be written."""
        if self._folder is not None:
            path = self._folder / f"{name}.safetensors"
            with writing(path):
                write_tensors(path, tensors)

    def load(self, name: str) -> dict[str, Tensor] | None:
        """Tensors of that name, if there are any; an `ArtifactError` where they are damaged."""
        path = self._folder and self._folder / f"{name}.safetensors"
        return read_tensors(path) if path and path.is_file() else None

    def remove(self) -> None:
        """Delete them: the measurement is finished."""
        if self._folder is not None:
            (self._folder / SETTINGS).unlink(missing_ok=True)
            shutil.rmtree(self._folder)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(path, f"cannot be read ({error}); remove its folder") from error
