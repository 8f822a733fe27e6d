"""The VQ tokenizer: images to a grid of codes and back, state-dict compatible with LlamaGen.

``image -> Encoder -> quant_conv -> VectorQuantizer -> post_quant_conv -> Decoder -> image``.
Images are float in [-1, 1].

Legend: B images, H = W = image size, f downsampling factor, h = w = H / f, N = B h w, E code dim,
V codes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc_core.errors import ConfigError
from masc_core.models.conv import NORM_GROUPS, Decoder, Encoder

USAGE_WINDOW = 65536
MAX_LEVELS, MAX_RES_BLOCKS = 10, 64  # each block is an object, even before it has weights


@dataclass(frozen=True, slots=True)
class VQConfig:
    """Sizes of a tokenizer; the defaults are those of LlamaGen's VQ-16."""

    num_codes: int = 16384  # V
    code_dim: int = 8  # E
    ch: int = 128  # channels of level 0 before its multiplier
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)  # of each level, highest resolution first
    num_res_blocks: int = 2  # a level of the encoder
    z_channels: int = 256  # of what the decoder takes
    dropout: float = 0.0  # rate inside the residual blocks
    l2_norm: bool = True  # features and codebook on the unit sphere

    def __post_init__(self) -> None:
        """Refuse sizes that no such tokenizer can have."""
        if self.num_codes < 2 or self.code_dim < 1:
            raise ConfigError("a codebook needs at least two codes of at least one dimension")
        if not self.ch_mult or min(self.ch_mult) < 1 or self.num_res_blocks < 1:
            raise ConfigError("ch_mult and num_res_blocks must be positive")
        if len(self.ch_mult) > MAX_LEVELS or self.num_res_blocks > MAX_RES_BLOCKS:
            raise ConfigError(
                f"a tokenizer has at most {MAX_LEVELS} levels of {MAX_RES_BLOCKS} blocks"
            )
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

    def check_positions(self, length: int) -> None:
        """Raise a `ConfigError` unless images of so many codes exist; of a grid all do."""

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
        self.encoder, self.decoder = self._networks(config)
        self.quantize = VectorQuantizer(
            config.num_codes,
            config.code_dim,
            beta=beta,
            entropy_ratio=entropy_ratio,
            l2_norm=config.l2_norm,
        )
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.z_channels, 1)

    @staticmethod
    def _networks(config: VQConfig) -> tuple[Encoder, Decoder]:
        sizes = network_sizes(config)
        return Encoder(*sizes), Decoder(*sizes)

    def features(self, images: Tensor) -> Tensor:
        """Encoder features (B, E, h, w) of images (B, 3, H, W); H and W multiples of the factor."""
        return self.quant_conv(self.encoder(images))

    def encode(self, images: Tensor) -> Quantized:
        """Quantize images (B, 3, H, W) in [-1, 1]."""
        return self.quantize(self.features(images))

    def decode(self, quant: Tensor) -> Tensor:
        """Images (B, 3, H, W), nominally in [-1, 1], of code vectors (B, E, h, w)."""
        return self.decoder(self.decoder_input(quant))

    def decoder_input(self, quant: Tensor) -> Tensor:
        """What the decoder takes, (B, z_channels, h, w), of code vectors (B, E, h, w)."""
        return self.post_quant_conv(quant)

    def latents(self, codes: Tensor, width: int | None = None) -> Tensor:
        """What the decoder takes, (B, z_channels, h, w), of grids of codes (B, h*w)."""
        width = width or round(codes.shape[1] ** 0.5)
        return self.decoder_input(self.quantize.lookup(codes.view(len(codes), -1, width)))

    def decode_codes(self, codes: Tensor, width: int | None = None) -> Tensor:
        """Images of grids of codes (B, h*w) int64 in raster order; by default they are square."""
        return self.decoder(self.latents(codes, width))

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruction (B, 3, H, W) and what the quantizer made on the way."""
        quantized = self.encode(images)
        return self.decode(quantized.quant), quantized


def network_sizes(config: VQConfig) -> tuple[int, tuple[int, ...], int, int, float]:
    """What `Encoder` and `Decoder` are made with."""
    sizes = (config.ch, config.ch_mult, config.num_res_blocks, config.z_channels)
    return (*sizes, config.dropout)


@dataclass(frozen=True, slots=True)
class Quantized:
    """What the quantizer makes of features."""

    quant: Tensor  # (B, E, h, w), the code vectors, with the straight-through gradient
    codes: Tensor  # int64 (B, h*w), raster order
    loss: Tensor  # scalar, codebook + commitment + entropy loss; zero in evaluation mode
    parts: dict[str, Tensor]  # the three terms of ``loss``, detached


class VectorQuantizer(nn.Module):
    """Codebook of V vectors, ``code(z) = argmin_j |z - e_j|^2``.

    Rows of the codebook are normalised on the fly, since the optimiser moves the raw ones. ``beta``
    is the weight of the commitment loss, ``entropy_ratio`` that of the entropy loss; 0 is off.
    """

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        beta: float = 0.25,
        entropy_ratio: float = 0.0,
        l2_norm: bool = True,
    ) -> None:
        super().__init__()
        self.num_codes, self.dim = num_codes, dim
        self.beta, self.entropy_ratio, self.l2_norm = beta, entropy_ratio, l2_norm
        self.embedding = nn.Embedding(num_codes, dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / num_codes, 1.0 / num_codes)
        if l2_norm:
            with torch.no_grad():
                self.embedding.weight.copy_(F.normalize(self.embedding.weight))
        self.register_buffer("codebook_used", torch.zeros(USAGE_WINDOW))

    def codebook(self) -> Tensor:
        """Effective codebook, float (V, E): the rows that codes stand for."""
        weight = self.embedding.weight
        return F.normalize(weight) if self.l2_norm else weight

    def forward(self, z: Tensor) -> Quantized:
        """Quantize features of shape (B, E, h, w); in float32 whatever autocast says."""
        with torch.autocast(z.device.type, enabled=False):
            rows = z.float().permute(0, 2, 3, 1)  # (B, h, w, E)
            rows = F.normalize(rows, dim=-1) if self.l2_norm else rows
            codebook = self.codebook().float()
            distances = squared_distances(rows.flatten(0, 2), codebook)  # (N, V)
            codes = distances.argmin(dim=1)
            nearest = F.embedding(codes, codebook).view(rows.shape)
            parts = self._losses(rows, nearest, distances) if self.training else {}
            if self.training:
                self._note_usage(codes)
            quant = rows + (nearest - rows).detach()  # straight-through
        return Quantized(
            quant=quant.permute(0, 3, 1, 2),
            codes=codes.view(len(z), -1),
            loss=torch.stack(list(parts.values())).sum() if parts else z.new_zeros(()),
            parts={name: term.detach() for name, term in parts.items()},
        )

    def lookup(self, codes: Tensor) -> Tensor:
        """Code vectors (B, E, h, w) of codes (B, h, w) int64 in [0, V)."""
        return F.embedding(codes, self.codebook()).permute(0, 3, 1, 2)

    def usage(self) -> float:
        """Share of the codebook among the last 65,536 training codes.

        The window starts as zeros, as upstream's does, so code 0 counts until it has filled.
        """
        return len(torch.unique(self.get_buffer("codebook_used"))) / self.num_codes

    def _losses(self, rows: Tensor, nearest: Tensor, distances: Tensor) -> dict[str, Tensor]:
        losses = {
            "codebook": F.mse_loss(nearest, rows.detach()),
            "commitment": self.beta * F.mse_loss(rows, nearest.detach()),
        }
        if self.entropy_ratio:
            losses["entropy"] = self.entropy_ratio * entropy_loss(-distances)
        return losses

    def _note_usage(self, codes: Tensor) -> None:
        window = self.get_buffer("codebook_used")
        newest = codes.detach()[-USAGE_WINDOW:].to(window.dtype)
        window.copy_(torch.cat([window[len(newest) :], newest]))


def squared_distances(rows: Tensor, codebook: Tensor) -> Tensor:
    """``|z|^2 + |e|^2 - 2 z.e`` of rows (N, E) and codebook (V, E), as (N, V)."""
    norms = rows.square().sum(1, keepdim=True) + codebook.square().sum(1)
    return norms - 2 * rows @ codebook.t()


def entropy_loss(affinity: Tensor, temperature: float = 0.01) -> Tensor:
    """Mean entropy of the soft assignments minus the entropy of their mean.

    Low when every vector is sure of its code and all codes are in use. ``affinity`` is (N, V).
    """
    scaled = affinity / temperature
    probabilities = scaled.softmax(dim=-1)
    # Upstream adds 1e-5 before the logarithms; inside the log-softmax it has no effect.
    mean = probabilities.mean(dim=0)
    entropy_of_mean = -(mean * (mean + 1e-5).log()).sum()
    mean_entropy = -(probabilities * scaled.log_softmax(dim=-1)).sum(dim=-1).mean()
    return mean_entropy - entropy_of_mean


def pixels_to_float(pixels: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) to float32 (B, 3, S, S) in [-1, 1], channels last in memory."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_uint8(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] to uint8 (B, H, W, 3): ``trunc(clamp(127.5 x + 128))``."""
    levels = torch.clamp(127.5 * images.float() + 128.0, 0, 255)
    return levels.permute(0, 2, 3, 1).to(torch.uint8)
