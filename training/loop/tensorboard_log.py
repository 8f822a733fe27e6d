"""The numbers of a run's log for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from masc_core.errors import ConfigError


class TensorBoardLog:
    """Event files in a folder.

    Parameters
    ----------
    folder : where they are; a resumed run adds another one
    step : where the run goes on; what an earlier file says of later steps is not shown

    Raises
    ------
    ConfigError
        TensorBoard is not installed.
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
