"""Convolutional encoder and decoder of LlamaGen's VQ tokenizer.

Levels run from the image's resolution (level 0) to the lowest, each half the one before it.
Only the lowest level and the middle attend, or nothing does.

Shapes: B images, C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

NORM_GROUPS, NORM_EPSILON = 32, 1e-6


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation as everywhere in this tokenizer: 32 groups, eps 1e-6, affine."""
    return nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPSILON)


class ResidualBlock(nn.Module):
    """Norm, swish, 3x3 convolution, twice, added to the input."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions, with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])  # (B, 1, H*W, C)
        h = h[:, 0].transpose(1, 2).reshape(x.shape)  # (B, C, H, W)
        projected: Tensor = self.proj_out(h)
        return x + projected


class Downsample(nn.Module):
    """Strided 3x3 convolution over an image padded by one zero at the right and the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour, twice the size, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention if it attends."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        *,
        attend: bool,
        dropout: float,
        down: bool = False,
        up: type[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.res = nn.ModuleList(ResidualBlock(a, b, dropout) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttentionBlock(out_channels) for _ in range(blocks * attend))
        self.downsample = Downsample(out_channels) if down else nn.Identity()
        self.upsample = up(out_channels) if up else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H, W), or half or twice H and W."""
        for block in self.blocks():
            x = block(x)
        return self.upsample(self.downsample(x))

    def blocks(self) -> Iterator[nn.Module]:
        """Yield the blocks in order, without the change of size at the end."""
        for i, block in enumerate(self.res):
            yield block
            yield from self.attn[i : i + 1]


def middle(channels: int, dropout: float, *, attend: bool) -> nn.ModuleList:
    """Residual block, attention if it attends, residual block."""
    blocks = nn.ModuleList([ResidualBlock(channels, channels, dropout)])
    if attend:
        blocks.append(AttentionBlock(channels))
    return blocks.append(ResidualBlock(channels, channels, dropout))


class Encoder(nn.Module):
    """Images to a grid of features; parameters as in `masc_core.models.vq.VQConfig`."""

    def __init__(
        self,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        dropout: float,
        *,
        attend: bool = True,
    ) -> None:
        super().__init__()
        last = len(ch_mult) - 1
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        width = ch
        for i, multiplier in enumerate(ch_mult):
            out, attends = ch * multiplier, attend and i == last
            self.conv_blocks.append(
                Level(width, out, num_res_blocks, attend=attends, down=i != last, dropout=dropout)
            )
            width = out
        self.mid = middle(width, dropout, attend=attend)
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, z_channels, H/f, W/f)."""
        h = self.conv_in(x)
        for level in self.conv_blocks:
            h = level(h)
        for block in self.mid:
            h = block(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """A grid of features to images; levels have one residual block more than the encoder's.

    ``conv_blocks.0`` is the lowest resolution.
    """

    upsampling: ClassVar[type[nn.Module]] = Upsample

    def __init__(
        self,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        dropout: float,
        *,
        attend: bool = True,
    ) -> None:
        super().__init__()
        last = len(ch_mult) - 1
        width = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, width, 3, padding=1)
        self.mid = middle(width, dropout, attend=attend)
        self.conv_blocks = nn.ModuleList()
        for i, multiplier in enumerate(reversed(ch_mult)):
            out, blocks, attends = ch * multiplier, num_res_blocks + 1, attend and i == 0
            up = None if i == last else self.upsampling
            self.conv_blocks.append(
                Level(width, out, blocks, attend=attends, up=up, dropout=dropout)
            )
            width = out
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, z_channels, h, w) to (B, 3, H, W), without a non-linearity at the end."""
        h = self.conv_in(z)
        for block in self.mid:
            h = block(h)
        for level in self.conv_blocks:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))
