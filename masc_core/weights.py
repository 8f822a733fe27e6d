"""Weights of one model with its configuration, in one safetensors file.

The header names the kind of model and its sizes, so a file loads without anything beside it.
Nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from masc_core.errors import ArtifactError, ConfigError
from masc_core.files import atomic_path
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.vq import VQConfig, VQModel


def save_tokenizer(path: Path, model: VQModel) -> None:
    """Write a tokenizer."""
    _save(path, "tokenizer", model.config, model.state_dict())


def load_tokenizer(path: Path) -> VQModel:
    """Read a tokenizer, in evaluation mode on the CPU.

    Raises
    ------
    ArtifactError
        The file is missing, damaged, or holds something else.
    """
    config, state = _load(path, "tokenizer")
    try:
        model = VQModel(VQConfig(**{**config, "ch_mult": tuple(config["ch_mult"])}))
        model.load_state_dict(state)
    except (TypeError, KeyError, ConfigError, RuntimeError) as error:
        raise ArtifactError(path, f"does not hold what its header says ({error})") from error
    return model.eval()


def save_transformer(path: Path, model: GPT) -> None:
    """Write a transformer."""
    _save(path, "transformer", model.config, model.state_dict())


def load_transformer(path: Path) -> GPT:
    """Read a transformer, in evaluation mode on the CPU.

    Raises
    ------
    ArtifactError
        The file is missing, damaged, or holds something else.
    """
    config, state = _load(path, "transformer")
    try:
        model = GPT(GPTConfig(**config))
        model.load_state_dict(state)
    except (TypeError, KeyError, ConfigError, RuntimeError) as error:
        raise ArtifactError(path, f"does not hold what its header says ({error})") from error
    return model.eval()


def _save(path: Path, kind: str, config: Any, state: dict[str, Tensor]) -> None:  # noqa: ANN401
    header = {"kind": kind, "config": json.dumps(dataclasses.asdict(config))}
    # Safetensors stores plain row-major tensors, and refuses views.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def _load(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("kind") != kind:
                raise ArtifactError(path, f"is not a {kind} of this program")
            config: dict[str, Any] = json.loads(header["config"])
            return config, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ArtifactError(path, f"cannot be read ({error})") from error
