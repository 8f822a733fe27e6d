"""Two-dimensional rotary position embedding, as LlamaGen's.

Of a head's D/2 pairs the first half turns with the row of the grid, the second with the column:
pair angles ``[r f_0 .. r f_{D/4-1}, c f_0 .. c f_{D/4-1}]``, ``f_j = base^(-2j / (D/2))``.
Pairs are interleaved, (2i, 2i+1).

The class token's entry has cosine 0 *and* sine 0, which makes its query and key vanish: every later
position scores it 0. Released weights depend on that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rope_table(grid_size: int, head_dim: int, base: float = 10000.0) -> Tensor:
    """Cosines and signed sines of every channel, in the form that `apply_rope` takes.

    Parameters
    ----------
    grid_size : cells a side
    head_dim : D, a multiple of 4
    base : slowest frequency is about its inverse

    Returns
    -------
    float32 (1 + grid_size**2, 2, D), on the CPU: ``cos`` twice a pair, and ``-sin, sin``. Row 0 is
    the class token's, row 1 + p that of grid cell p
    """
    half = head_dim // 2
    with torch.device("cpu"):  # whatever device the model is built on: the same numbers everywhere
        frequencies = base ** (-2 * torch.arange(half // 2).float() / half)
        angles = torch.outer(torch.arange(grid_size).float(), frequencies)  # (grid, D/4)
        by_row = angles[:, None].expand(grid_size, grid_size, -1)
        by_column = angles[None].expand(grid_size, grid_size, -1)
        cells = torch.cat([by_row, by_column], dim=-1).flatten(0, 1)  # (grid^2, D/2)
        cos, sin = F.pad(cells.cos(), (0, 0, 1, 0)), F.pad(cells.sin(), (0, 0, 1, 0))
        twice = torch.stack([cos, cos], dim=-1).flatten(1)  # (1 + grid^2, D)
        return torch.stack([twice, torch.stack([-sin, sin], dim=-1).flatten(1)], dim=1)


def no_rotation(num_positions: int, head_dim: int) -> Tensor:
    """The same for positions that do not turn, float32 (num_positions, 2, D)."""
    with torch.device("cpu"):
        return torch.stack([torch.ones(head_dim), torch.zeros(head_dim)]).repeat(
            num_positions, 1, 1
        )


def apply_rope(x: Tensor, cos_sin: Tensor) -> Tensor:
    """Rotate the pairs of queries or keys: ``(a, b) -> (a cos - b sin, b cos + a sin)``.

    Parameters
    ----------
    x : (..., T, H, D), any float type
    cos_sin : float32 (T, 2, D), one entry a token; see `rope_table`

    Returns
    -------
    the shape and type of ``x``; computed in float32
    """
    wide = x.float()
    swapped = wide.reshape(*x.shape[:-1], -1, 2).flip(-1).flatten(-2)
    cos, sin = cos_sin[:, 0, None], cos_sin[:, 1, None]  # (T, 1, D)
    return (wide * cos + swapped * sin).to(x.dtype)


def split_rotated(qkv: Tensor, cos_sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries, rotated keys and values, each (..., T, H, D).

    Parameters
    ----------
    qkv : (..., T, 3 H, D), all queries, then all keys, then all values
    cos_sin : float32 (T, 2, D)
    """
    num_heads = qkv.shape[-2] // 3
    v = qkv[..., 2 * num_heads :, :]
    q, k = apply_rope(qkv[..., : 2 * num_heads, :], cos_sin).chunk(2, dim=-2)
    return q, k, v
