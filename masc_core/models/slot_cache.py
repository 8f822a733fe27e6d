"""Keys and values of rows that are found one by one, by tensors alone.

A step reads nothing on the host, so that it can be recorded once and replayed for any rows. Row r
attends to the first ``positions[r] + 1`` entries of slot ``slots[r]``: no row sees another.
Two implementations of one function: `attend_plainly` in torch, and a Triton kernel for GPUs
(`masc_core.models.decode_attention`).

Legend: S slots, R rows, T positions, H heads, D head dim.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from masc_core.models.gpt_config import GPTConfig
from masc_core.models.rope import split_turned
from masc_core.models.rows import Rows


class SlotCache:
    """Room for every position of ``num_slots`` sequences, in every layer.

    Parameters
    ----------
    config : of the transformer
    num_slots : S
    dtype, device : the transformer's

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
        shape = (num_slots, config.n_head, config.block_size, config.head_dim)
        self.layers = [SlotLayer(shape, dtype, torch.device(device)) for _ in range(config.n_layer)]


class SlotLayer:
    """One block's part. It starts as zeros: what a row has not written may be multiplied by 0.

    Attributes
    ----------
    keys, values : (S, H, T, D)
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self._attend = attend_plainly
        if device.type == "cuda" and has_triton():
            from masc_core.models.decode_attention import attend  # noqa: PLC0415 - needs Triton

            self._attend = attend

    def step(self, qkv: Tensor, turns: Tensor, rows: Rows) -> Tensor:
        """Store what is new, and attend; see `masc_core.models.gpt.LayerCache`."""
        return self._attend(qkv, turns, rows.slots, rows.positions, self.keys, self.values)


def has_triton() -> bool:
    """Whether kernels can be compiled for a GPU."""
    return find_spec("triton") is not None


def attend_plainly(
    qkv: Tensor, turns: Tensor, slots: Tensor, positions: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Turn and store what is new, and attend to it and to what is before.

    Parameters
    ----------
    qkv : (R, 3 H, D), all queries, then all keys, then all values
    turns : float32 (R, 2, D), see `masc_core.models.rope.rotation`
    slots, positions : int64 (R,); rows that share a slot leave it with anyone's entries
    keys, values : (S, H, T, D), changed in place

    Returns
    -------
    (R, H, D), of the type of ``qkv``
    """
    query, key, value = split_turned(qkv, turns)
    keys[slots, :, positions] = key.to(keys.dtype)
    values[slots, :, positions] = value.to(values.dtype)
    past = torch.arange(keys.shape[2], device=keys.device) <= positions[:, None]  # (R, T)
    scores = (query[:, :, None] * keys[slots]).sum(-1, dtype=torch.float32)  # (R, H, T)
    scores = scores * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~past[:, None], -torch.inf).softmax(-1)
    # Not a product with zeros: what another image left behind its end may be a NaN.
    seen = values[slots].float().masked_fill(~past[:, None, :, None], 0.0)
    attended: Tensor = (weights[..., None] * seen).sum(2)
    return attended.to(qkv.dtype)
