"""Weights of one model with its configuration, in one safetensors file.

The header names the kind of model and its sizes, so a file loads without anything beside it: this
is what training stages hand to each other. Bundles keep sizes in their manifest instead.

All that reads raises an `ArtifactError` where the file is missing, damaged, or holds something
else; models come in evaluation mode, on the CPU.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from masc_core.errors import ArtifactError, ConfigError
from masc_core.io.bounded import parse_json
from masc_core.io.tensors import Module, load_module, read_header, write_tensors
from masc_core.models.completer import Completer
from masc_core.models.completer_config import CompleterConfig
from masc_core.models.gigatok import GigaTok, GigaTokConfig
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.refiner import Refiner, RefinerConfig
from masc_core.models.vq import VQConfig, VQModel

_KINDS = {
    VQModel: "tokenizer",
    GigaTok: "gigatok1d",
    GPT: "transformer",
    Refiner: "refiner",
    Completer: "completer",
}


def save_model(
    path: Path, model: GPT | VQModel | Refiner, inputs: Mapping[str, str] | None = None
) -> None:
    """Write a model, with the hashes of what it was trained from, by name, if there are any."""
    header = {"kind": _KINDS[type(model)], "config": json.dumps(dataclasses.asdict(model.config))}
    if inputs is not None:
        header["inputs"] = json.dumps(inputs)
    write_tensors(path, model.state_dict(), torch.float32, header)


def read_inputs(path: Path) -> dict[str, str]:
    """Hashes of what a model was trained from, by name, as it was saved with them."""
    try:
        return dict(parse_json(read_header(path).get("inputs", "{}")))
    except (TypeError, ValueError) as error:
        raise ArtifactError(path, f"has a header of another program ({error})") from error


def load_tokenizer(path: Path) -> VQModel:
    """Read a tokenizer of either kind."""
    if read_header(path).get("kind") == _KINDS[GigaTok]:
        return _load(path, _KINDS[GigaTok], lambda sizes: GigaTok(GigaTokConfig(**sizes)))
    return _load(path, "tokenizer", lambda sizes: VQModel(VQConfig(**sizes)))


def load_transformer(path: Path) -> GPT:
    """Read a transformer."""
    return _load(path, "transformer", lambda sizes: GPT(GPTConfig(**sizes)))


def load_refiner(path: Path) -> Refiner:
    """Read a refiner."""
    return _load(path, "refiner", lambda sizes: Refiner(RefinerConfig(**sizes)))


def load_completer(path: Path) -> Completer:
    """Read a completer."""
    return _load(path, "completer", lambda sizes: Completer(CompleterConfig(**sizes)))


def _load(path: Path, kind: str, build: Callable[[dict[str, Any]], Module]) -> Module:
    header = read_header(path)
    if header.get("kind") != kind:
        raise ArtifactError(path, f"is not a {kind} of this program")
    try:
        sizes = parse_json(header["config"])
        # JSON has no tuples.
        sizes |= {name: tuple(value) for name, value in sizes.items() if isinstance(value, list)}
        return load_module(path, lambda: build(sizes))
    except (TypeError, AttributeError, KeyError, ValueError, ConfigError) as error:
        raise ArtifactError(path, f"has a header of another program ({error})") from error
