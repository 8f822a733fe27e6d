"""The VQ tokenizer: images to a grid of codes and back, state-dict compatible with LlamaGen.

``image -> Encoder -> quant_conv -> VectorQuantizer -> post_quant_conv -> Decoder -> image``.
Images are float in [-1, 1].

Shapes: B images, H = W = image size, f downsampling factor, h = w = H / f, E code dim, V codes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from masc_core.errors import ConfigError
from masc_core.models.conv import NORM_GROUPS, Decoder, Encoder
from masc_core.models.quantizer import Quantized, VectorQuantizer


@dataclass(frozen=True, slots=True)
class VQConfig:
    """Sizes of a tokenizer; the defaults are those of LlamaGen's VQ-16."""

    num_codes: int = 16384
    code_dim: int = 8
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 256
    dropout: float = 0.0
    l2_norm: bool = True

    def __post_init__(self) -> None:
        """Refuse sizes that no such tokenizer can have."""
        if self.num_codes < 2 or self.code_dim < 1:
            raise ConfigError("a codebook needs at least two codes of at least one dimension")
        if not self.ch_mult or min(self.ch_mult) < 1 or self.num_res_blocks < 1:
            raise ConfigError("ch_mult and num_res_blocks must be positive")
        if self.ch < 1 or self.ch % NORM_GROUPS:
            raise ConfigError(f"ch must be a multiple of {NORM_GROUPS}, not {self.ch}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be in [0, 1), not {self.dropout}")

    @property
    def factor(self) -> int:
        """Pixels a side of one grid cell."""
        return 1 << (len(self.ch_mult) - 1)

    def grid_size(self, image_size: int) -> int:
        """Grid cells a side of an image; a `ConfigError` where they do not fit."""
        if image_size % self.factor:
            raise ConfigError(
                f"image_size: must be a multiple of {self.factor}, the pixels a side of one code, "
                f"not {image_size}"
            )
        return image_size // self.factor

    @classmethod
    def named(cls, name: str, *, num_codes: int = 16384) -> VQConfig:
        """Return a size by its name: ``VQ-16``, ``VQ-8`` or ``VQ-4-small``."""
        if name not in VQ_SIZES:
            raise ConfigError(f"no tokenizer size {name!r}; there are {', '.join(VQ_SIZES)}")
        return replace(VQ_SIZES[name], num_codes=num_codes)


VQ_SIZES = {
    "VQ-16": VQConfig(),
    "VQ-8": VQConfig(ch_mult=(1, 2, 2, 4)),
    "VQ-4-small": VQConfig(ch=32, ch_mult=(1, 2, 2), z_channels=64),
}


class VQModel(nn.Module):
    """Encoder, quantizer and decoder."""

    def __init__(self, config: VQConfig, *, beta: float = 0.25, entropy_ratio: float = 0.0) -> None:
        super().__init__()
        self.config = config
        sizes = (config.ch, config.ch_mult, config.num_res_blocks, config.z_channels)
        self.encoder = Encoder(*sizes, config.dropout)
        self.decoder = Decoder(*sizes, config.dropout)
        self.quantize = VectorQuantizer(
            config.num_codes,
            config.code_dim,
            beta=beta,
            entropy_ratio=entropy_ratio,
            l2_norm=config.l2_norm,
        )
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.z_channels, 1)

    def features(self, images: Tensor) -> Tensor:
        """Encoder features (B, E, h, w) of images (B, 3, H, W); H and W multiples of the factor."""
        features: Tensor = self.quant_conv(self.encoder(images))
        return features

    def encode(self, images: Tensor) -> Quantized:
        """Quantize images (B, 3, H, W) in [-1, 1]."""
        quantized: Quantized = self.quantize(self.features(images))
        return quantized

    def decode(self, quant: Tensor) -> Tensor:
        """Images (B, 3, H, W), nominally in [-1, 1], of code vectors (B, E, h, w)."""
        images: Tensor = self.decoder(self.post_quant_conv(quant))
        return images

    def latents(self, codes: Tensor, width: int | None = None) -> Tensor:
        """What the decoder takes, (B, z_channels, h, w), of grids of codes (B, h*w)."""
        width = width or round(codes.shape[1] ** 0.5)
        vectors = self.quantize.lookup(codes.view(len(codes), -1, width))
        latents: Tensor = self.post_quant_conv(vectors)
        return latents

    def decode_codes(self, codes: Tensor, width: int | None = None) -> Tensor:
        """Images of grids of codes (B, h*w) int64 in raster order; by default they are square."""
        images: Tensor = self.decoder(self.latents(codes, width))
        return images

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruction (B, 3, H, W) and what the quantizer made on the way."""
        quantized = self.encode(images)
        return self.decode(quantized.quant), quantized


def to_uint8(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] to uint8 (B, H, W, 3): ``trunc(clamp(127.5 x + 128))``."""
    levels = torch.clamp(127.5 * images.float() + 128.0, 0, 255)
    return levels.permute(0, 2, 3, 1).to(torch.uint8)
