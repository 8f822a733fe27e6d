"""GigaTok's 1-D tokenizer: images to a sequence of codes and back, state-dict compatible.

``image -> CNN -> s2to1encoder -> quant_conv -> VectorQuantizer -> post_quant_conv -> s1to2decoder
-> CNN -> image``. Between the CNNs, which attend nowhere, transformers turn the grid of features
into latent tokens, coarse to fine in groups of 1, 1, 2, 4, ..., L / 2, and tokens into a grid. A
token belongs to no place of the image. There is no training: the decoder lacks the head that
learns DINOv2's features.

Legend: B images, h = w cells a side, L = h w latent tokens, a power of two, C channels of a CNN,
Z = z_channels, W width of a transformer, E code dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc_core.errors import ConfigError
from masc_core.models.conv import NORM_EPSILON, NORM_GROUPS, Decoder, Encoder
from masc_core.models.vq import VQConfig, VQModel, network_sizes

MLP_RATIO = 4
MAX_LAYERS = 128  # each is an object, even before it has weights

# Width, layers and heads of a transformer, by its name.
VIT_SIZES = {
    "S": (512, 6, 8),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1280, 36, 20),
    "XXL": (1536, 48, 24),
}


@dataclass(frozen=True, slots=True)
class GigaTokConfig(VQConfig):
    """Sizes of a 1-D tokenizer; the defaults are those of GigaTok's S-S."""

    latent_shape: tuple[int, int] = (1, 256)  # (1, L)
    encoder_width: int = 512
    encoder_layers: int = 6
    encoder_heads: int = 8
    decoder_width: int = 512
    decoder_layers: int = 6
    decoder_heads: int = 8

    def __post_init__(self) -> None:
        """Refuse sizes that no such tokenizer can have."""
        VQConfig.__post_init__(self)  # a class with slots is made anew, which super() misses
        rows, length = self.latent_shape
        if rows != 1 or length < 4 or 4 ** (length.bit_length() // 2) != length:
            raise ConfigError(
                f"latent_shape: must be 1 row of 4, 16, 64, ... tokens, not {rows} of {length}"
            )
        for name in ("encoder", "decoder"):
            width, layers, heads = (
                getattr(self, f"{name}_{size}") for size in ("width", "layers", "heads")
            )
            if min(width, layers, heads) < 1 or width % heads:
                raise ConfigError(f"{name}_heads: {width} channels do not make {heads} heads")
            if layers > MAX_LAYERS:
                raise ConfigError(f"{name}_layers: must be at most {MAX_LAYERS}, not {layers}")

    @property
    def grid(self) -> int:
        """Cells a side of the grid that the latent tokens are made of."""
        return math.isqrt(self.latent_shape[1])

    def grid_size(self, image_size: int) -> int:
        """Cells a side of an image; a `ConfigError` for any image size but the tokenizer's own."""
        if image_size != self.grid * self.factor:
            raise ConfigError(
                f"image_size: must be {self.grid * self.factor}, the only one of this tokenizer, "
                f"not {image_size}"
            )
        return self.grid

    def check_positions(self, length: int) -> None:
        """Raise a `ConfigError` unless an image has so many tokens."""
        if length != self.latent_shape[1]:
            raise ConfigError(
                f"the tokenizer has {self.latent_shape[1]} tokens an image, "
                f"but the transformer predicts {length}"
            )

    @classmethod
    def named(cls, name: str, *, num_codes: int = 16384) -> GigaTokConfig:
        """Return GigaTok's size of such an encoder and decoder, for example ``B-L``."""
        encoder, _, decoder = name.partition("-")
        if encoder not in VIT_SIZES or decoder not in VIT_SIZES:
            raise ConfigError(f"no size {name!r}; it is two of {', '.join(VIT_SIZES)}, as in B-L")
        e_width, e_layers, e_heads = VIT_SIZES[encoder]
        d_width, d_layers, d_heads = VIT_SIZES[decoder]
        return cls(
            num_codes=num_codes,
            encoder_width=e_width,
            encoder_layers=e_layers,
            encoder_heads=e_heads,
            decoder_width=d_width,
            decoder_layers=d_layers,
            decoder_heads=d_heads,
        )


class GigaTok(VQModel):
    """Encoder, quantizer and decoder; code vectors and codes are sequences, (B, E, 1, L)."""

    config: GigaTokConfig

    def __init__(self, config: GigaTokConfig) -> None:
        super().__init__(config)
        self.s2to1encoder = GridToTokens(config)
        self.s1to2decoder = TokensToGrid(config)

    @staticmethod
    def _networks(config: VQConfig) -> tuple[Encoder, Decoder]:
        return Encoder(*network_sizes(config), attend=False), AdaptiveDecoder(config)

    def features(self, images: Tensor) -> Tensor:
        """Encoder features (B, E, 1, L) of images (B, 3, H, W) of the tokenizer's only size."""
        return self.quant_conv(self.s2to1encoder(self.encoder(images)))

    def decoder_input(self, quant: Tensor) -> Tensor:
        """What the decoder takes, (B, Z, h, w), of code vectors (B, E, 1, L)."""
        return self.s1to2decoder(self.post_quant_conv(quant))

    def latents(self, codes: Tensor, width: int | None = None) -> Tensor:  # noqa: ARG002 - no rows
        """What the decoder takes, (B, Z, h, w), of codes (B, L), or of their beginning (B, n)."""
        codes = codes[:, preview_sources(codes.shape[1], self.config.latent_shape[1])]
        return self.decoder_input(self.quantize.lookup(codes[:, None]))


def new_tokenizer(config: VQConfig) -> VQModel:
    """Return a tokenizer of that kind and size, with random weights."""
    return GigaTok(config) if isinstance(config, GigaTokConfig) else VQModel(config)


def latent_groups(length: int) -> list[tuple[int, int]]:
    """Rows and columns of the regions that each group of L tokens stands for, coarse to fine.

    The encoder begins with the means of these regions: 1x1, 1x1, 1x2, 2x2, 2x4, ...
    """
    halvings = [(1 << g // 2, 1 << (g + 1) // 2) for g in range(length.bit_length() - 1)]
    return [(1, 1), *halvings]


def preview_sources(drawn: int, length: int) -> list[int]:
    """Whose code each of L positions takes when only the first ``drawn`` have one.

    The others repeat the last group that is whole: the token of the region they are within.
    """
    sources, last = list(range(drawn)), (0, 1, 1)  # start, rows and columns of a group
    start = 0
    for rows, columns in latent_groups(length):
        size = rows * columns
        if start + size <= drawn:
            last = (start, rows, columns)
        for i in range(max(0, drawn - start), size):
            row, column = i // columns * last[1] // rows, i % columns * last[2] // columns
            sources.append(last[0] + row * last[2] + column)
        start += size
    return sources


class TransformerLayer(nn.Module):
    """Self-attention, attention to a memory and a feed-forward block, each after a norm.

    Positions are added to queries and keys, not to values; the memory is not normalised.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads)
        self.multihead_attn = nn.MultiheadAttention(width, heads)
        self.linear1 = nn.Linear(width, MLP_RATIO * width)
        self.linear2 = nn.Linear(MLP_RATIO * width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, memory: Tensor, positions: Tensor, memory_keys: Tensor) -> Tensor:
        """(N, B, W) with positions (N, 1, W), memory and its keys (M, B, W), to (N, B, W)."""
        values = self.norm1(x)
        queries = values + positions
        x = x + self.self_attn(queries, queries, values, need_weights=False)[0]
        queries = self.norm2(x) + positions
        x = x + self.multihead_attn(queries, memory_keys, memory, need_weights=False)[0]
        return x + self.linear2(F.gelu(self.linear1(self.norm3(x))))


class _Transformer(nn.Module):
    """What both directions have: an embedding of a memory, and layers of queries over it."""

    def __init__(self, config: GigaTokConfig, width: int, layers: int, heads: int) -> None:
        super().__init__()
        length = config.latent_shape[1]
        self.positional_embedding = nn.Parameter(torch.empty(length, 1, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(length, 1, width))
        for positions in (self.positional_embedding, self.latent_token_positional_embedding):
            nn.init.normal_(positions, std=width**-0.5)
        self.ln_pre = nn.LayerNorm(config.z_channels)
        self.transformer = nn.ModuleList(TransformerLayer(width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)

    def attend(
        self, queries: Tensor, memory: Tensor, positions: Tensor, memory_positions: Tensor
    ) -> Tensor:
        """Run the layers; queries (N, B, W) and memory (M, B, W) to (B, W, N)."""
        memory_keys = memory + memory_positions
        for layer in self.transformer:
            queries = layer(queries, memory, positions, memory_keys)
        normed: Tensor = self.ln_post(queries)
        return normed.permute(1, 2, 0).contiguous()


class GridToTokens(_Transformer):
    """Features of a grid's cells to those of latent tokens."""

    def __init__(self, config: GigaTokConfig) -> None:
        width = config.encoder_width
        super().__init__(config, width, config.encoder_layers, config.encoder_heads)
        self.encoder_embed = nn.Linear(config.z_channels, width)
        self.global_proj = nn.Linear(width, width)
        self.conv_out = nn.Conv2d(width, config.z_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, Z, h, w) to (B, Z, 1, L)."""
        memory = self.encoder_embed(self.ln_pre(x.flatten(2).permute(2, 0, 1)))  # (h*w, B, W)
        cells = memory.permute(1, 2, 0).reshape(len(x), -1, *x.shape[2:])  # (B, W, h, w)
        means = [F.adaptive_avg_pool2d(cells, g).flatten(2) for g in latent_groups(len(memory))]
        queries = self.global_proj(torch.cat(means, dim=2).permute(2, 0, 1))  # (L, B, W)
        tokens = self.attend(
            queries, memory, self.latent_token_positional_embedding, self.positional_embedding
        )
        return self.conv_out(tokens[:, :, None])


class TokensToGrid(_Transformer):
    """Features of latent tokens to those of a grid's cells."""

    def __init__(self, config: GigaTokConfig) -> None:
        width = config.decoder_width
        super().__init__(config, width, config.decoder_layers, config.decoder_heads)
        self.decoder_embed = nn.Linear(config.z_channels, width)
        self.conv_out = nn.Conv2d(width, config.z_channels, 3, padding=1)
        self.grid = config.grid

    def forward(self, x: Tensor) -> Tensor:
        """(B, Z, 1, L) to (B, Z, h, w)."""
        memory = self.decoder_embed(self.ln_pre(x[:, :, 0].permute(2, 0, 1)))  # (L, B, W)
        queries = memory[:1].expand_as(memory)  # every cell begins as the first, coarsest token
        cells = self.attend(
            queries, memory, self.positional_embedding, self.latent_token_positional_embedding
        )
        return self.conv_out(cells.view(*cells.shape[:2], self.grid, self.grid))


class DepthToSpace(nn.Module):
    """A 3x3 convolution to 4 C channels, which become twice the height and the width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2H, 2W); ``out[c, 2y+i, 2x+j] = conv[(2i+j) C + c, y, x]``."""
        batch, channels, height, width = x.shape
        quarters = self.conv1(x).reshape(batch, 2, 2, channels, height, width)
        whole = quarters.permute(0, 3, 4, 1, 5, 2)  # (B, C, H, i, W, j)
        return whole.reshape(batch, channels, 2 * height, 2 * width)


class AdaptiveDecoder(Decoder):
    """The CNN decoder without attention; its input scales and shifts what enters each level."""

    upsampling = DepthToSpace

    def __init__(self, config: VQConfig) -> None:
        super().__init__(*network_sizes(config), attend=False)
        multipliers = (config.ch_mult[-1], *config.ch_mult[:0:-1])  # of what enters each level
        self.adaptive = nn.ModuleList(
            AdaptiveNorm(config.ch * multiplier, config.z_channels) for multiplier in multipliers
        )

    def forward(self, z: Tensor) -> Tensor:
        """(B, Z, h, w) to (B, 3, H, W), without a non-linearity at the end."""
        cells = z.flatten(2)
        std, mean = (cells.var(dim=2) + NORM_EPSILON).sqrt(), cells.mean(dim=2)  # (B, Z)
        h = self.conv_in(z)
        for block in self.mid:
            h = block(h)
        for norm, level in zip(self.adaptive, self.conv_blocks, strict=True):
            h = level(norm(h, std, mean))
        return self.conv_out(F.silu(self.norm_out(h)))


class AdaptiveNorm(nn.Module):
    """Group normalisation with a scale and a shift that come from the decoder's input."""

    def __init__(self, channels: int, z_channels: int) -> None:
        super().__init__()
        self.gamma = nn.Linear(z_channels, channels)
        self.beta = nn.Linear(z_channels, channels)

    def forward(self, x: Tensor, std: Tensor, mean: Tensor) -> Tensor:
        """(B, C, H, W), with std and mean (B, Z), to the same shape."""
        normed = F.group_norm(x, NORM_GROUPS, eps=NORM_EPSILON)
        return self.gamma(std)[:, :, None, None] * normed + self.beta(mean)[:, :, None, None]
