"""The files that the weights of LlamaGen, IAR and GigaTok come in.

================ ====================================================================
trained by       holds
================ ====================================================================
DDP              ``{model, optimizer, steps, args[, ema]}``, ``args`` an
                 ``argparse.Namespace``; a tokenizer also its discriminator
DeepSpeed        ``{module, ...}``
others           ``{state_dict, ...}``
FSDP             ``consolidated.pth``: the tensors themselves
safetensors      the tensors themselves
================ ====================================================================

Tensors stay on the disk until they are used.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from masc_core.errors import ArtifactError
from masc_core.io.tensors import read_tensors
from training.torch_file import read_torch_file

Weights = Literal["model", "ema"]

# Where the weights are, in the order in which upstream looks.
KEYS = ("model", "module", "state_dict")
# What wrappers put into names: torch.compile, FSDP, DDP.
WRAPPERS = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|^module\.")
# Tables and caches of a live module that older files carry, and a head that only training needs.
NO_WEIGHT = re.compile(
    r"(^|\.)(freqs_cis|kv_cache\.[kv]_cache)$|^s1to2decoder\.distill_mlp\.\d\.(weight|bias)$"
)
ROPE_TABLE = "freqs_cis"


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """What a file holds of one model.

    Attributes
    ----------
    path : of the file
    tensors : by the names that upstream's modules give them
    rope_shape : of the rope table (1 + L, D / 2, 2), where the file has one; weights alone do not
        give L and D
    arguments : of the training script, where the file has them, as far as JSON can hold them
    steps : of the training, where the file says
    """

    path: Path
    tensors: Mapping[str, Tensor]
    rope_shape: tuple[int, ...] | None = None
    arguments: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    steps: int | None = None

    @classmethod
    def open(cls, path: Path, weights: Weights = "model") -> CheckpointFile:
        """Read the weights, or their moving average, of a ``.safetensors`` or ``torch.save`` file.

        Raises
        ------
        ArtifactError : the file is missing, damaged or none of these, asks for code to be run, or
            lacks those weights
        """
        content = read_tensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
        if not isinstance(content, Mapping):
            raise ArtifactError(path, f"holds a {type(content).__name__}, not named tensors")
        tensors = _named_tensors(path, _choose(path, content, weights))
        table = tensors.get(ROPE_TABLE)
        steps = content.get("steps")
        return cls(
            path=path,
            tensors={name: one for name, one in tensors.items() if not NO_WEIGHT.search(name)},
            rope_shape=None if table is None else tuple(table.shape),
            arguments=dict(_plain(content.get("args"))),
            steps=steps if isinstance(steps, int) else None,
        )


def _choose(path: Path, content: Mapping[Any, Any], weights: Weights) -> Mapping[Any, Any]:
    if weights == "ema":
        if not isinstance(content.get("ema"), Mapping):
            raise ArtifactError(path, "has no moving average (ema) of its weights")
        return content["ema"]
    return next((content[key] for key in KEYS if isinstance(content.get(key), Mapping)), content)


def _named_tensors(path: Path, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ArtifactError(
                path,
                f"holds {str(name)[:80]!r}, which is no tensor; of weights there is no sign under "
                f"{', '.join(KEYS)}, nor at the top",
            )
        if not is_whole(tensor):
            raise ArtifactError(path, f"the tensor {name} has more numbers than the file")
        plain = WRAPPERS.sub("", name)
        if plain in tensors:
            raise ArtifactError(path, f"holds the tensor {plain} twice")
        tensors[plain] = tensor
    if not tensors:
        raise ArtifactError(path, "holds no tensors")
    return tensors


def is_whole(tensor: Tensor) -> bool:
    """Whether each number has its own place: of strides of 0 a file makes a tensor of any size."""
    if tensor.layout is not torch.strided or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _plain(arguments: object) -> Iterator[tuple[str, bool | int | float | str]]:
    values = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    if not isinstance(values, Mapping):
        return
    for name, value in values.items():
        if isinstance(name, str) and isinstance(value, bool | int | str):
            yield name, value
        elif isinstance(name, str) and isinstance(value, float):
            yield name, value if abs(value) < float("inf") else str(value)
