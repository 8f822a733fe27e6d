"""A product with weights that a step may read in the order in which the processor takes them.

The product of a few rows takes as long as reading the weights. oneDNN reads them twice as fast from
blocks of its own, where a row also has the same bits among any number of rows from two on, so that
a single one is filled up to two; with the matrix tiles of a processor (AMX) it has them in portions
of certain sizes.

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


class PackedWeight:
    """A copy of a layer's weight (out, in) and bias, in the order in which the processor reads it.

    They are of a type for which `can_pack` holds.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._blocks: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self._bias = None if bias is None else bias.detach()
        self._in_portions = weight.dtype == torch.bfloat16 and processor_has("amx_bf16")

    def multiply(self, x: Tensor) -> Tensor:
        """(R, in) to (R, out)."""
        if not self._in_portions:
            return self._multiply(x if len(x) > 1 else F.pad(x, (0, 0, 0, 1)))[: len(x)]
        filled = F.pad(x, (0, 0, 0, -len(x) % TILE_ROWS))
        parts = [self._multiply(part) for part in torch.split(filled, PORTION_ROWS)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[: len(x)]

    def _multiply(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._blocks, self._bias, "none", [], "")


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN computes in the weight's type, on its device."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


class Projection(nn.Linear):
    """A linear layer, without a bias unless one is asked for."""

    def __init__(self, dim_in: int, dim_out: int, *, bias: bool = False) -> None:
        super().__init__(dim_in, dim_out, bias=bias)
        self._packed: PackedWeight | None = None

    def pack(self) -> None:
        """Let steps read a copy of the weights as they are now, in blocks.

        Where oneDNN does not compute in their type, or on a GPU, steps go on reading the weights.
        """
        self._packed = PackedWeight(self.weight, self.bias) if can_pack(self.weight) else None

    def step(self, x: Tensor) -> Tensor:
        """(R, in) to (R, out), without a gradient."""
        if self._packed is not None:
            return self._packed.multiply(x)
        return self(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._packed = None  # of another type or device
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Blocks cannot be copied: a copy reads its weights until it is packed itself.
        return {**self.__dict__, "_packed": None}
