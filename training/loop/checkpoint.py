"""Complete training state, written by `torch.distributed.checkpoint` as safetensors.

::

    <run>/checkpoints/<step>/*.safetensors   weights, averages, moments; a rank writes its part
    <run>/checkpoints/<step>/state.json      where the run stood, and its configuration

A folder gets its name when everything in it is on the disk, and only then the earlier one goes: a
full disk or a killed process leaves what there was. Any number of ranks, sharded or not, reads what
any other has written. Nothing is pickled. There are no random states: randomness is a function of
(seed, step, rank), see `training.loop.trainer`.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint.state_dict_loader as loader
import torch.distributed.checkpoint.state_dict_saver as saver
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.optim import Optimizer

from masc_core.errors import ArtifactError
from masc_core.io.bounded import parse_json, read_file
from masc_core.io.files import TEMPORARY_PREFIX, atomic_write, flush
from masc_core.io.tensors import check_tensors_file
from training.loop.distributed import Ranks
from training.loop.ema import EMA
from training.loop.task import TrainedModule

FOLDER = "checkpoints"
STATE = "state.json"
FIELDS = ("step", "best", "seconds", "config")


@dataclass(frozen=True, slots=True)
class TrainState:
    """Where a run stands: finished optimiser steps, and the best validation value so far."""

    step: int = 0
    best: float = float("inf")
    seconds: float = 0.0


def latest_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint of a run's folder, if there is one."""
    found = (path.parent for path in (folder / FOLDER).glob(f"*/{STATE}"))
    complete = [path for path in found if path.name.isdecimal()]
    return max(complete, key=lambda path: int(path.name), default=None)


def latest_step(path: Path | None) -> int:
    """Finished steps of a checkpoint; 0 where there is none."""
    return int(path.name) if path else 0


def checkpoint_config(path: Path) -> dict[str, Any]:
    """Configuration and inputs of the run that wrote it; an `ArtifactError` if it is damaged."""
    return _read_state(path)["config"]


def save_checkpoint(
    folder: Path,
    state: TrainState,
    trained_modules: tuple[TrainedModule, ...],
    ema: EMA | None,
    config: Mapping[str, Any],
    ranks: Ranks,
) -> None:
    """Write the whole state of a run; collective, call on every rank.

    An `ArtifactError` where that is not possible; the earlier one is still there.
    """
    root = folder / FOLDER
    final = root / f"{state.step:07d}"
    partial = root / f"{TEMPORARY_PREFIX}{final.name}"
    with ranks.raise_on_all_ranks("writing a checkpoint"), _writing(final, partial):
        if ranks.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
    with _writing(final, partial):
        writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
        tensors = {
            name: value.contiguous() for name, value in _tensors(trained_modules, ema).items()
        }
        # Of what every rank has, such as buffers, the main rank's counts.
        planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)
        saver.save(tensors, storage_writer=writer, planner=planner, no_dist=ranks.world_size == 1)
    with ranks.raise_on_all_ranks("writing a checkpoint"), _writing(final, partial):
        if ranks.is_main:
            _complete(partial, final, {**asdict(state), "config": dict(config)})


def load_checkpoint(
    path: Path, trained_modules: tuple[TrainedModule, ...], ema: EMA | None, ranks: Ranks
) -> TrainState:
    """Put a saved state back, and return where the run stood; collective, call on every rank.

    An `ArtifactError` where it is damaged, or belongs to models of other shapes.
    """
    state = _read_state(path)
    try:
        with _quiet():
            for file in path.glob("*.safetensors"):
                check_tensors_file(file)
            reader = HuggingFaceStorageReader(str(path))
            stored = reader.read_metadata().state_dict_metadata
            _make_moments(trained_modules, set(stored))
            tensors = _tensors(trained_modules, ema)
            _compare(path, {k: tuple(v.size) for k, v in stored.items()}, tensors)  # type: ignore[union-attr]
            rows = {name: value.contiguous() for name, value in tensors.items()}
            loader.load(rows, storage_reader=reader, no_dist=ranks.world_size == 1)
            for name, value in tensors.items():
                value.copy_(rows[name])
    except (OSError, SafetensorError, CheckpointException, RuntimeError, KeyError) as error:
        raise ArtifactError(path, f"cannot be read ({_reason(error)})") from error
    return TrainState(int(state["step"]), float(state["best"]), float(state["seconds"]))


def _tensors(trained_modules: tuple[TrainedModule, ...], ema: EMA | None) -> dict[str, Tensor]:
    """Everything there is, by name: what is saved, and what is loaded into."""
    tensors: dict[str, Tensor] = {}
    for i, trained in enumerate(trained_modules):
        for name, value in trained.model.state_dict().items():
            tensors[f"model.{i}.{name}"] = value.detach()
        for number, parameter in enumerate(_parameters(trained.optimizer)):
            for key, value in trained.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{i}.{number}.{key}"] = value
    if ema is not None:
        tensors |= {f"average.{name}": value for name, value in ema.values.items()}
    return tensors


def _make_moments(trained_modules: tuple[TrainedModule, ...], names: set[str]) -> None:
    """Give optimisers that have not stepped yet the state that is about to be loaded."""
    for i, trained in enumerate(trained_modules):
        for number, parameter in enumerate(_parameters(trained.optimizer)):
            prefix = f"optimizer.{i}.{number}."
            moments = trained.optimizer.state[parameter]
            for key in sorted(n.removeprefix(prefix) for n in names if n.startswith(prefix)):
                fused = trained.optimizer.param_groups[0].get("fused")
                scalar = torch.zeros((), device=parameter.device if fused else "cpu")
                moments[key] = scalar if key == "step" else torch.zeros_like(parameter)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _compare(path: Path, stored: dict[str, tuple[int, ...]], tensors: dict[str, Tensor]) -> None:
    for name in sorted(stored.keys() ^ tensors.keys()):
        where = "lacks" if name in tensors else "has"
        raise ArtifactError(path, f"is of another model: it {where} {name}")
    for name, value in tensors.items():
        if stored[name] != tuple(value.shape):
            raise ArtifactError(
                path,
                f"is of another model: {name} is {stored[name]} in it, not {tuple(value.shape)}",
            )


def _complete(partial: Path, final: Path, state: dict[str, Any]) -> None:
    """Give a written checkpoint its name, and let the earlier ones go."""
    atomic_write(partial / STATE, json.dumps(state).encode())
    for path in partial.iterdir():
        flush(path)
    partial.rename(final)
    flush(final.parent)
    for other in final.parent.iterdir():
        if other != final:
            shutil.rmtree(other, ignore_errors=True)


def _read_state(path: Path) -> dict[str, Any]:
    file = path / STATE
    try:
        state = parse_json(read_file(file), allow_nan=True)  # of no epoch yet, the best is infinite
        return {field: state[field] for field in FIELDS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(file, f"is not the state of a checkpoint ({error})") from error


@contextmanager
def _writing(final: Path, partial: Path) -> Iterator[None]:
    try:
        with _quiet():
            yield
    except (OSError, SafetensorError, CheckpointException) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ArtifactError(final, f"cannot be written ({_reason(error)})") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that there are no ranks, and of torch's own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _reason(error: BaseException) -> str:
    """One line of what may be an error of several ranks."""
    if isinstance(error, CheckpointException):
        error = next((failure[0] for failure in error.failures.values()), error)
    return str(error).splitlines()[0] if str(error) else type(error).__name__
