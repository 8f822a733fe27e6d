"""Complete training state in one safetensors file, replaced atomically.

A run that resumes from it repeats exactly what an undisturbed run would have done: weights,
optimiser moments, random state and position in the data are all inside.
Nothing is pickled.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from masc_core.errors import ArtifactError
from masc_core.files import atomic_path
from masc_core.tensors import read_header, read_tensors

HEADER = "masc"  # the key of the JSON in the file's header
FIELDS = ("step", "best", "seconds", "param_groups", "config")  # of that JSON


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: finished optimiser steps, and the best validation value so far."""

    step: int = 0
    best: float = float("inf")
    seconds: float = 0.0


def save_checkpoint(
    path: Path, progress: Progress, model: nn.Module, optimizer: Optimizer, config: dict[str, Any]
) -> None:
    """Write the whole state of a run."""
    tensors = {f"model.{k}": v.detach().contiguous() for k, v in model.state_dict().items()}
    state = optimizer.state_dict()
    for index, moments in state["state"].items():
        for key, value in moments.items():
            tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value).contiguous()
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    header = {
        "step": progress.step,
        "best": progress.best,
        "seconds": progress.seconds,
        "param_groups": state["param_groups"],
        "config": config,
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={HEADER: json.dumps(header)})


def load_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer) -> Progress:
    """Put a saved state back, and return where the run stood.

    Raises
    ------
    ArtifactError
        The file is damaged, or belongs to a model of another shape.
    """
    header, tensors = _header(path), read_tensors(path)
    try:
        model.load_state_dict(_under(tensors, "model."))
    except RuntimeError as error:
        raise ArtifactError(path, f"is of another model: {error}") from error
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _under(tensors, "optimizer.").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": header["param_groups"]})
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    return Progress(int(header["step"]), float(header["best"]), float(header["seconds"]))


def checkpoint_config(path: Path) -> dict[str, Any]:
    """Configuration and inputs of the run that wrote a checkpoint.

    Raises
    ------
    ArtifactError
        The file is damaged.
    """
    config: dict[str, Any] = _header(path)["config"]
    return config


def _header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(read_header(path)[HEADER])
        return {key: header[key] for key in FIELDS}
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(path, f"is not a checkpoint of this program ({error})") from error


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
