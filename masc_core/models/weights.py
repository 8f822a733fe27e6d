"""Weights of one model with its configuration, in one safetensors file.

The header names the kind of model and its sizes, so a file loads without anything beside it: this
is what training stages hand to each other. Bundles keep sizes in their manifest instead.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from masc_core.errors import ArtifactError, ConfigError
from masc_core.io.tensors import fill_module, read_header, without_memory, write_tensors
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.refiner import Refiner, RefinerConfig
from masc_core.models.vq import VQConfig, VQModel

Model = TypeVar("Model", GPT, VQModel, Refiner)


def save_tokenizer(path: Path, model: VQModel) -> None:
    """Write a tokenizer."""
    _save(path, "tokenizer", model)


def load_tokenizer(path: Path) -> VQModel:
    """Read a tokenizer, in evaluation mode on the CPU.

    Raises
    ------
    ArtifactError : the file is missing, damaged, or holds something else
    """
    return _load(path, "tokenizer", _tokenizer)


def save_transformer(path: Path, model: GPT, inputs: dict[str, str]) -> None:
    """Write a transformer, with the hashes of what it was trained from, by name."""
    _save(path, "transformer", model, {"inputs": json.dumps(inputs)})


def load_transformer(path: Path) -> GPT:
    """Read a transformer, in evaluation mode on the CPU.

    Raises
    ------
    ArtifactError : the file is missing, damaged, or holds something else
    """
    return _load(path, "transformer", lambda sizes: GPT(GPTConfig(**sizes)))


def save_refiner(path: Path, model: Refiner, inputs: dict[str, str]) -> None:
    """Write a refiner, with the hashes of what it was trained from, by name."""
    _save(path, "refiner", model, {"inputs": json.dumps(inputs)})


def load_refiner(path: Path) -> Refiner:
    """Read a refiner, in evaluation mode on the CPU.

    Raises
    ------
    ArtifactError : the file is missing, damaged, or holds something else
    """
    return _load(path, "refiner", lambda sizes: Refiner(RefinerConfig(**sizes)))


def read_inputs(path: Path) -> dict[str, str]:
    """Hashes of what a transformer or a refiner was trained from, by name, as it was saved.

    Raises
    ------
    ArtifactError : the file is missing, damaged or of another kind
    """
    inputs: dict[str, str] = json.loads(read_header(path).get("inputs", "{}"))
    return inputs


def _save(
    path: Path, kind: str, model: GPT | VQModel | Refiner, more: dict[str, str] | None = None
) -> None:
    config = json.dumps(dataclasses.asdict(model.config))
    header = {"kind": kind, "config": config, **(more or {})}
    write_tensors(path, model.state_dict(), torch.float32, header)


def _load(path: Path, kind: str, build: Callable[[dict[str, Any]], Model]) -> Model:
    header = read_header(path)
    if header.get("kind") != kind:
        raise ArtifactError(path, f"is not a {kind} of this program")
    try:
        with without_memory():
            model = build(json.loads(header["config"]))
    except (TypeError, KeyError, ValueError, ConfigError) as error:
        raise ArtifactError(path, f"has a header of another program ({error})") from error
    return fill_module(path, model).eval()


def _tokenizer(sizes: dict[str, Any]) -> VQModel:
    return VQModel(VQConfig(**{**sizes, "ch_mult": tuple(sizes["ch_mult"])}))
