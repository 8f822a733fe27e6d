"""A product with weights that a step may read in the order in which the processor takes them.

The product of a few rows takes as long as reading the weights. oneDNN reads them twice as fast from
blocks of its own, where a row also has the same bits among any number of rows from two on; with the
matrix tiles of a processor (AMX) it has them in portions of certain sizes.
This module does not know when steps are made.

Legend: R rows.
"""

# torch has no public names for oneDNN's blocks; these operators are what its own compiler calls.
# ruff: noqa: SLF001

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc_core.device import processor_has

# With tiles, the number of rows decides which kernel oneDNN takes, and kernels round differently.
# In portions of one tile or of two every row has the same bits; two cost little more than one.
TILE_ROWS = 16
PORTION_ROWS = 2 * TILE_ROWS


class Projection(nn.Linear):
    """A linear layer, without a bias unless one is asked for."""

    def __init__(self, dim_in: int, dim_out: int, *, bias: bool = False) -> None:
        super().__init__(dim_in, dim_out, bias=bias)
        self._packed: Tensor | None = None
        self._in_portions = False

    def pack(self) -> None:
        """Let steps read a copy of the weights as they are now, in blocks.

        Where oneDNN does not compute in their type, or on a GPU, steps go on reading the weights.
        """
        weight = self.weight.detach()
        self._packed = _in_blocks(weight) if _can_pack(weight) else None
        self._in_portions = weight.dtype == torch.bfloat16 and processor_has("amx_bf16")

    def step(self, x: Tensor) -> Tensor:
        """(R, in) to (R, out), without a gradient."""
        packed = self._packed
        if packed is None:
            out: Tensor = self(x)
            return out
        multiply = _multiply_in_portions if self._in_portions else _multiply
        return multiply(x, packed, self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._packed = None  # of another type or device
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Blocks cannot be copied: a copy reads its weights until it is packed itself.
        return {**self.__dict__, "_packed": None}


def _can_pack(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def _in_blocks(weight: Tensor) -> Tensor:
    blocks: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return blocks


def _multiply_in_portions(x: Tensor, blocks: Tensor, bias: Tensor | None) -> Tensor:
    filled = F.pad(x, (0, 0, 0, -len(x) % TILE_ROWS))
    parts = [_multiply(part, blocks, bias) for part in torch.split(filled, PORTION_ROWS)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[: len(x)]


def _multiply(x: Tensor, blocks: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, blocks, bias, "none", [], "")
    return out
