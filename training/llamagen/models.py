"""Models of this project with LlamaGen's weights.

The tensors are taken as they are, in the precision of the file and where they are on the disk:
nothing is copied until it is used. Every name and shape is checked first.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from masc_core.errors import ArtifactError
from masc_core.io.tensors import without_memory
from masc_core.models.gpt import GPT, RopeTable
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.vq import VQConfig, VQModel
from training.llamagen.container import Container

Module = TypeVar("Module", bound=nn.Module)

USAGE = "quantize.codebook_used"  # statistics of the training, which older files lack


def gpt_of(container: Container, config: GPTConfig) -> GPT:
    """A transformer, in evaluation mode.

    Raises
    ------
    ArtifactError : the file lacks a tensor, has a surplus one, or one of another shape; names it
    """
    with without_memory():
        empty = GPT(config)
    model = _filled(container, empty)
    model.rope = RopeTable(config)  # no weight, so not in the file
    return model.eval()


def tokenizer_of(container: Container, config: VQConfig) -> VQModel:
    """A tokenizer, in evaluation mode; errors as for `gpt_of`."""
    with without_memory():
        empty = VQModel(config)
    if USAGE not in container.tensors:
        used = empty.quantize.get_buffer("codebook_used")
        empty.quantize.codebook_used = torch.zeros(used.shape)
    return _filled(container, empty, optional=(USAGE,)).eval()


def _filled(container: Container, module: Module, optional: tuple[str, ...] = ()) -> Module:
    expected, tensors = module.state_dict(), container.tensors
    for name, tensor in expected.items():
        if name not in tensors and name not in optional:
            raise ArtifactError(container.path, f"the tensor {name} is not in it")
        if name in tensors and tensors[name].shape != tensor.shape:
            raise ArtifactError(
                container.path,
                f"the tensor {name} has the shape {tuple(tensors[name].shape)}, "
                f"not {tuple(tensor.shape)}",
            )
    for name in tensors:
        if name not in expected:
            raise ArtifactError(container.path, f"the tensor {name} belongs to no part of it")
    module.load_state_dict(dict(tensors), strict=False, assign=True)
    return module.requires_grad_(requires_grad=False)
