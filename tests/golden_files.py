"""Golden numbers: outputs of the upstream projects' own code, stored under ``tests/golden``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"


def load_golden(name: str) -> dict[str, Tensor]:
    """Tensors of a file; float16 ones are exact float32 values stored small, so upcast."""
    tensors = load_file(FOLDER / name)
    return {k: v.float() if v.dtype == torch.float16 else v for k, v in tensors.items()}


def load_golden_json(name: str) -> Any:
    return json.loads((FOLDER / name).read_text("utf-8"))


def assert_close(actual: Tensor, expected: Tensor, *, atol: float, rtol: float) -> None:
    """``|a - b| <= atol + rtol * |b|`` everywhere."""
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol)


def cos_sin_of(table: Tensor) -> Tensor:
    """Upstream's rotations (T, D/2, 2) as `masc_core.models.rope.rope_table` has them."""
    cos, sin = table.repeat_interleave(2, dim=1).unbind(-1)  # twice a pair
    return torch.stack([cos, sin * torch.tensor([-1, 1]).repeat(table.shape[1])], dim=1)
