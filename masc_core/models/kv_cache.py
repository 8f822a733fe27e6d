"""Keys and values of the positions that a batch has been through.

The cache lives outside the model, so that a model can be trained, evaluated and served at once and
a state dict never holds it. This module does not know what attends to it.

Legend: R rows, T positions, H heads, D head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from masc_core.models.gpt_config import GPTConfig


class KVCache:
    """Room for every position of ``num_rows`` sequences, in every layer.

    Attributes
    ----------
    keys, values : one tensor (R, H, T, D) a layer
    """

    def __init__(
        self,
        config: GPTConfig,
        num_rows: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (num_rows, config.n_head, config.block_size, config.head_dim)
        self.num_rows = num_rows
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.n_layer)]
        self.values = [torch.empty_like(keys) for keys in self.keys]

    def write(self, layer: int, position: int, keys: Tensor, values: Tensor) -> None:
        """Store one position of every row; ``keys`` and ``values`` are (R, H, D)."""
        self.keys[layer][:, :, position] = keys
        self.values[layer][:, :, position] = values

    def read(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values (R, H, length, D) of the first ``length`` positions."""
        return self.keys[layer][:, :, :length], self.values[layer][:, :, :length]
