"""The folder of one training run: its lock, its configuration, its log, its checkpoint.

``config.json``, ``log.jsonl`` (one object a line), ``checkpoint.safetensors``; what a stage
produces stands beside them. A folder belongs to one process at a time.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel

from masc_core.errors import ConfigError
from masc_core.files import atomic_write
from training.checkpoint import checkpoint_config
from training.lock import lock_folder

# Keys that may differ between a run and its continuation: they change where and how fast, not what.
FREE_KEYS = frozenset(
    {
        *("data", "val_data", "codes", "val_codes", "prior", "out"),
        *("device", "threads", "log_every", "checkpoint_every"),
    }
)


class Run:
    """Open a run's folder, creating it, and hold it until closed.

    Parameters
    ----------
    folder : where everything of the run stands
    config : the stage's configuration; a folder that was begun with another one is refused
    inputs : hashes of what the stage starts from, by name; a folder that was begun from something
        else is refused, wherever that lies

    Raises
    ------
    ConfigError
        The folder is in use, cannot be written, or was begun with another configuration.
    """

    def __init__(
        self, folder: Path, config: BaseModel, inputs: dict[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoint.safetensors"
        self.log_path = folder / "log.jsonl"
        self.config: dict[str, Any] = config.model_dump(mode="json") | {"inputs": inputs or {}}
        self._lock = lock_folder(folder)
        try:
            self._settle_config()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the folder go."""
        self._lock.close()

    def log(self, **values: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
        """Append one line to the log."""
        with self.log_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **values}) + "\n")

    def rewind_log(self, step: int) -> None:
        """Drop the lines of steps after ``step``, which a resumed run is about to repeat."""
        if not self.log_path.exists():
            return
        kept = []
        for line in self.log_path.read_text("utf-8").splitlines():
            try:
                if json.loads(line).get("step", 0) <= step:
                    kept.append(line + "\n")
            except ValueError:
                continue  # the line that was being written when the run was killed
        atomic_write(self.log_path, "".join(kept).encode())

    def write_json(self, name: str, value: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
        """Write a JSON file of the run, atomically."""
        atomic_write(self.folder / name, (json.dumps(value, indent=2) + os.linesep).encode())

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run."""
        value: dict[str, Any] = json.loads((self.folder / name).read_text("utf-8"))
        return value

    def _settle_config(self) -> None:
        if self.checkpoint.exists():
            begun = checkpoint_config(self.checkpoint)
            changed = [
                key
                for key in sorted(begun.keys() | self.config.keys())
                if key not in FREE_KEYS and begun.get(key) != self.config.get(key)
            ]
            if changed:
                raise ConfigError(
                    f"{self.folder}: was begun with other {', '.join(changed)}; "
                    "choose another folder or remove this one"
                )
        self.write_json("config.json", self.config)
