"""Small checkpoints in the containers that LlamaGen's come in.

The transformer is the one whose outputs upstream's code computed; the tokenizer has its 96 codes
and random weights. 4x4 positions of 4x4 pixels, 10 classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from masc_core.models.vq import VQConfig, VQModel
from tests.golden_files import load_golden

IMAGE_SIZE, N_HEAD = 16, 4
TINY_VQ = VQConfig(
    num_codes=96, code_dim=4, ch=32, ch_mult=(1, 1, 2), num_res_blocks=1, z_channels=32
)
NAMES = tuple(f"class {i}" for i in range(10))
CONTAINERS = ("ddp", "deepspeed", "state_dict", "fsdp", "compiled", "live", "old", "safetensors")


def gpt_tensors() -> dict[str, Tensor]:
    return load_golden("gpt/weights.safetensors")


def vq_tensors() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VQModel(TINY_VQ).state_dict()


def arguments(**changes: Any) -> argparse.Namespace:
    values = {
        "image_size": IMAGE_SIZE,
        "num_classes": 10,
        "gpt_model": "tiny",
        "lr": 1e-4,
        "x": None,
    }
    return argparse.Namespace(**(values | changes), resume=None)


def renumbered(tensors: dict[str, Tensor], mapping: Tensor, *names: str) -> dict[str, Tensor]:
    """Tensors whose rows IAR has moved: row ``i`` is row ``mapping[i]`` then."""
    moved = {name: torch.empty_like(tensors[name]) for name in names}
    for name, rows in moved.items():
        rows[mapping] = tensors[name]
    return tensors | moved


def save_iar_checkpoint(path: Path, mapping: Tensor, **changes: Any) -> Path:
    """The transformer as IAR would have trained it, over the new numbers."""
    tensors = renumbered(gpt_tensors(), mapping, "tok_embeddings.weight", "output.weight")
    trained = {"cluster_size": 8, "lambda_cce": 1.0, "mapping_path": "mapping.pt"}
    torch.save(
        {"model": tensors, "optimizer": {}, "steps": 7, "args": arguments(**trained | changes)},
        path,
    )
    return path


def save_checkpoint(path: Path, tensors: dict[str, Tensor], kind: str) -> Path:
    """Write tensors as the named kind of trainer leaves them."""
    caches = {f"layers.0.attention.kv_cache.{one}_cache": torch.zeros(2, 4, 17, 16) for one in "kv"}
    if kind == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(tensors, path)
        return path
    contents: dict[str, dict[str, Any]] = {
        "ddp": {"model": tensors, "optimizer": {"state": {}}, "steps": 7, "args": arguments()},
        "deepspeed": {"module": tensors, "global_steps": 7},
        "state_dict": {"state_dict": {f"module.{name}": one for name, one in tensors.items()}},
        "fsdp": tensors,
        "compiled": {"model": {f"_orig_mod.{name}": one for name, one in tensors.items()}},
        "live": {"model": tensors | caches},
        "old": {"model": tensors | {"freqs_cis": torch.zeros(17, 8, 2)}},
    }
    torch.save(contents[kind], path)
    return path
