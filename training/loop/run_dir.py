"""The folder of one training run: its lock, its configuration, its log, its checkpoints.

``config.json``, ``log.jsonl`` (one object a line), ``checkpoints/``; what a stage produces stands
beside them. A folder belongs to one run at a time. Of the ranks of a run the main one alone writes;
all of them have to see the folder.
"""

from __future__ import annotations

import fcntl
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from pydantic import BaseModel

from masc_core.errors import ConfigError
from masc_core.io.bounded import open_lock, parse_json, read_file
from masc_core.io.files import atomic_write, read_json, write_json
from training.changes import changes
from training.config import may_change
from training.loop.checkpoint import checkpoint_config, latest_checkpoint, latest_step
from training.loop.distributed import Ranks

LOCK = ".lock"
MAX_LOG_BYTES = 1 << 30


class Run:
    """Open a run's folder, creating it, and hold it until closed.

    Parameters
    ----------
    folder : where everything of the run stands
    config : the stage's configuration; a folder that was begun with another one is refused
    inputs : what the stage starts from, by name, as hashes or summaries; a folder that was begun
        from something else is refused, wherever that lies
    ranks : of the run; by default this process alone, on the CPU

    Attributes
    ----------
    checkpoint : what the run goes on from; None at its beginning

    Raises
    ------
    ConfigError : the folder is in use, cannot be written, or was begun with another configuration
    """

    def __init__(
        self,
        folder: Path,
        config: BaseModel,
        inputs: Mapping[str, Any] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.folder, self.ranks = folder, ranks or Ranks(torch.device("cpu"))
        self.log_path = folder / "log.jsonl"
        self.config: dict[str, Any] = config.model_dump(mode="json") | {
            "inputs": dict(inputs or {})
        }
        self._may_change = may_change(config)
        # Keys that came after a run was begun do not end it while they are at their default.
        self._set = config.model_dump(exclude_defaults=True).keys() | {"inputs"}
        self._lock: BinaryIO | None = None
        self._tensorboard: TensorBoardLog | None = None
        with self.ranks.raise_on_all_ranks(f"opening {folder}"):
            if self.ranks.is_main:
                self._open(with_tensorboard=getattr(config, "tensorboard", False))
        self.checkpoint = latest_checkpoint(folder)
        if not self.ranks.all_equal(latest_step(self.checkpoint)):
            self.close()
            raise ConfigError(f"{folder}: is not the same folder on every rank")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the logs and unlock the folder."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._lock is not None:
            self._lock.close()

    def log(self, **values: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
        """Append one line to the log, and the numbers of it to TensorBoard's if there is one."""
        if not self.ranks.is_main:
            return
        with self.log_path.open("a", encoding="utf-8") as file:
            line = {"time": round(time.time(), 3), **{k: _or_null(v) for k, v in values.items()}}
            file.write(json.dumps(line, allow_nan=False) + "\n")
        if self._tensorboard is not None:
            self._tensorboard.add(values)

    def rewind_log(self, step: int) -> None:
        """Drop the lines of steps after ``step``, which a resumed run is about to repeat."""
        if not self.ranks.is_main or not self.log_path.exists():
            return
        kept = []
        for line in read_file(self.log_path, MAX_LOG_BYTES).decode().splitlines():
            try:
                if parse_json(line, allow_nan=True).get("step", 0) <= step:
                    kept.append(line + "\n")
            except ValueError:
                continue  # the line that was being written when the run was killed
        atomic_write(self.log_path, "".join(kept).encode())

    def write_json(self, name: str, value: Any) -> None:  # noqa: ANN401 - whatever JSON can hold
        """Write a JSON file of the run, atomically."""
        if self.ranks.is_main:
            write_json(self.folder / name, value)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run."""
        return read_json(self.folder / name)

    def _open(self, *, with_tensorboard: bool) -> None:
        self._lock = lock_folder(self.folder)
        try:
            checkpoint = latest_checkpoint(self.folder)
            self._settle_config(checkpoint)
            if with_tensorboard:
                self._tensorboard = TensorBoardLog(
                    self.folder / "tensorboard", latest_step(checkpoint)
                )
        except BaseException:
            self._lock.close()
            raise

    def _settle_config(self, checkpoint: Path | None) -> None:
        begun = None
        if checkpoint is not None:
            begun = checkpoint_config(checkpoint)
        elif any(self.folder.glob("*.safetensors")):
            begun = self._stated_config()  # killed before its first checkpoint, or another's
        if begun is not None:
            compared = (begun.keys() | self._set) - self._may_change
            before, now = (
                {key: value for key, value in config.items() if key in compared}
                for config in (begun, self.config)
            )
            if changed := changes(before, now):
                raise ConfigError(
                    f"{self.folder}: was begun otherwise: {changed}; "
                    "choose another folder or remove this one"
                )
        self.write_json("config.json", self.config)

    def _stated_config(self) -> dict[str, Any]:
        try:
            return self.read_json("config.json")
        except (OSError, ValueError):
            return {}


class TensorBoardLog:
    """The numbers of the log, as TensorBoard's event files in a folder.

    A resumed run adds a file; what earlier ones say of steps after ``step`` is not shown.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - an optional package
        except ImportError as error:
            raise ConfigError("tensorboard: is not installed; pip install tensorboard") from error
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, values: Mapping[str, object]) -> None:
        """Take the numbers of a log line; it has ``kind`` and ``step``."""
        kind, step = values["kind"], values["step"]
        for name, value in values.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def _or_null(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """A value, or None for a NaN or an infinity, which JSON has no word for."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def lock_folder(folder: Path, *, wait: bool = False) -> BinaryIO:
    """Make the folder and lock it, until the returned file is closed or the process ends.

    A `ConfigError` where it cannot be written or, without ``wait``, another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open_lock(folder / LOCK)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        file.close()
        raise ConfigError(f"{folder}: another run is using this folder") from error
    return file
