"""Keys and values of the positions that rows have been through, and attention to them.

The cache lives outside the model, so that a model can be trained, evaluated and served at once and
a state dict never holds it. Row r of a step attends to the first ``positions[r] + 1`` entries of
slot ``slots[r]``: no row sees another, and nothing is read on the host, so that a GPU can capture a
step once and replay it for any rows. What differs between devices is how attention is computed: by
`masc_core.cpu_kernels` (numba), by `decode_attention` (Triton), or by `attention_reference`, which
defines both.

Legend: S slots, R rows, T positions, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from masc_core.models.gpt_config import GPTConfig
from masc_core.models.rope import split_rotated

KERNEL_DTYPES = (torch.float32, torch.bfloat16)  # of what numba compiles for a CPU

Attention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one step, all int64 (R,); they need not be at the same position."""

    ids: Tensor  # the class at position 0, after that the token at the position before
    positions: Tensor
    slots: Tensor  # where the rows are in the cache


class KVCache:
    """Room for every position of S sequences, in every layer of the transformer.

    Parameters
    ----------
    kernels : whether attention may use a compiled kernel, not only `attention_reference`
    """

    def __init__(
        self,
        config: GPTConfig,
        num_slots: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        kernels: bool = True,
    ) -> None:
        shape = (num_slots, config.n_head, config.block_size, config.head_dim)
        self.layers = [
            KVLayer(shape, dtype, torch.device(device), kernels=kernels)
            for _ in range(config.n_layer)
        ]


class KVLayer:
    """One block's part. It starts as zeros: what a row has not written may be multiplied by 0.

    Attributes
    ----------
    keys, values : (S, H, T, D)
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        *,
        kernels: bool = True,
    ) -> None:
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self._attend = choose_attention(dtype, device) if kernels else attention_reference

    def step(self, qkv: Tensor, cos_sin: Tensor, rows: Rows) -> Tensor:
        """Attention of the rows to their own positions; see `attention_reference`."""
        return self._attend(qkv, cos_sin, rows.slots, rows.positions, self.keys, self.values)


def choose_attention(dtype: torch.dtype, device: torch.device) -> Attention:
    """The fastest attention of single positions for a type and a device."""
    if device.type == "cuda" and has_triton():
        from masc_core.models import decode_attention  # noqa: PLC0415 - needs Triton

        return decode_attention.attend
    if device.type == "cpu" and dtype in KERNEL_DTYPES:
        from masc_core.cpu_kernels import attention  # noqa: PLC0415 - takes half a second

        return attention.attend
    return attention_reference


def has_triton() -> bool:
    """Whether kernels can be compiled for a GPU."""
    return find_spec("triton") is not None


def attention_reference(
    qkv: Tensor, cos_sin: Tensor, slots: Tensor, positions: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """Rotate and store what is new, and attend to it and to what is before.

    Parameters
    ----------
    qkv : (R, 3 H, D), all queries, then all keys, then all values
    cos_sin : float32 (R, 2, D), see `masc_core.models.rope.rope_table`
    slots, positions : int64 (R,); where rows share a slot, any one of them is stored
    keys, values : (S, H, T, D), changed in place

    Returns
    -------
    (R, H, D), of the type of ``qkv``
    """
    query, key, value = split_rotated(qkv, cos_sin)
    keys[slots, :, positions] = key.to(keys.dtype)
    values[slots, :, positions] = value.to(values.dtype)
    past = torch.arange(keys.shape[2], device=keys.device) <= positions[:, None]  # (R, T)
    scores = (query[:, :, None] * keys[slots]).sum(-1, dtype=torch.float32)  # (R, H, T)
    scores = scores * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~past[:, None], -torch.inf).softmax(-1)
    # Not a product with zeros: what another image left behind its end may be a NaN.
    seen = values[slots].float().masked_fill(~past[:, None, :, None], 0.0)
    return (weights[..., None] * seen).sum(2).to(qkv.dtype)
