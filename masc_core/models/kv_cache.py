"""Keys and values of the positions that rows have been through, and attention to them.

The cache lives outside the model, so that a model can be trained, evaluated and served at once and
a state dict never holds it. A row that starts anew may take any slot: what is behind its position
is never read. Rows are taken in groups; see `masc_core.models.slot_cache` for rows one by one.

Legend: S slots, R rows, T positions, H heads, D head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from masc_core.models.gpt_config import GPTConfig
from masc_core.models.rope import split_turned
from masc_core.models.rows import Rows


class KVCache:
    """Room for every position of ``num_slots`` sequences, in every layer.

    Parameters
    ----------
    config : of the transformer
    num_slots : S
    dtype : the transformer's; on the CPU the cache is float32 in any case, which it attends faster
    device : the transformer's

    Attributes
    ----------
    layers : what each block remembers
    """

    def __init__(
        self,
        config: GPTConfig,
        num_slots: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if torch.device(device).type == "cpu":
            dtype = torch.float32
        shape = (num_slots, config.n_head, config.block_size, config.head_dim)
        self.num_slots = num_slots
        self.layers = [KVLayer(shape, dtype, device) for _ in range(config.n_layer)]


class KVLayer:
    """One block's part.

    Attributes
    ----------
    keys, values : (S, H, T, D)
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)

    def step(self, qkv: Tensor, turns: Tensor, rows: Rows) -> Tensor:
        """Store what is new, and attend; see `masc_core.models.gpt.LayerCache`."""
        queries, keys, values = split_turned(qkv, turns)
        self.write(rows, keys, values)
        return self.attend(rows, queries)

    def write(self, rows: Rows, keys: Tensor, values: Tensor) -> None:
        """Store the rows' positions; ``keys`` and ``values`` are (R, H, D)."""
        for group in rows.groups:
            self.keys[group.slots, :, group.position] = keys[group.rows]
            self.values[group.slots, :, group.position] = values[group.rows]

    def attend(self, rows: Rows, queries: Tensor) -> Tensor:
        """Attention of every row to its own positions up to now.

        Parameters
        ----------
        queries : (R, H, D)

        Returns
        -------
        (R, H, D), of the type of the cache
        """
        queries = queries.to(self.keys.dtype)
        parts = [
            _attend(
                queries[group.rows],
                self.keys[group.slots, :, : group.position + 1],
                self.values[group.slots, :, : group.position + 1],
            )
            for group in rows.groups
        ]
        padding = queries[rows.groups[-1].last :]
        if len(padding):
            parts.append(padding)  # any numbers will do
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention (R, H, D) of one query (R, H, D) over keys and values (R, H, T, D)."""
    query = query[:, :, None]
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, keys, values)[:, :, 0]
    # A row must have the same bits whatever the other rows are. The fused kernel's rounding depends
    # on which thread takes a row, a batched product's does not.
    scores = query @ keys.transpose(2, 3) * query.shape[-1] ** -0.5  # (R, H, 1, T)
    attended: Tensor = scores.softmax(-1) @ values
    return attended[:, :, 0]
