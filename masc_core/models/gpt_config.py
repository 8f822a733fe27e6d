"""Sizes of the transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from masc_core.errors import ConfigError

# name: (dim, n_layer, n_head), LlamaGen's class-conditional sizes
GPT_SIZES = {
    "GPT-B": (768, 12, 12),
    "GPT-L": (1024, 24, 16),
    "GPT-XL": (1280, 36, 20),
    "GPT-XXL": (1536, 48, 24),
    "GPT-XXXL": (2560, 48, 40),
    "GPT-3B": (3200, 24, 32),
}
Positions = Literal["rope2d", "learned"]
MAX_LAYERS = 1024  # each is an object, even before it has weights


@dataclass(frozen=True, slots=True)
class GPTConfig:
    """Sizes and dropout rates of a transformer.

    A value that no such transformer can have is a `ConfigError`, which starts with the field.
    """

    vocab_size: int  # K, what the transformer predicts: clusters, or codes
    dim: int  # width C
    n_layer: int
    n_head: int  # H
    num_classes: int = 1000  # without the null class of classifier-free guidance
    block_size: int = 256  # L positions of an image, a perfect square
    token_dropout: float = 0.1  # rate after the embedding
    resid_dropout: float = 0.1  # after ``wo``
    ffn_dropout: float = 0.1  # after ``w2``
    class_dropout: float = 0.1  # share of labels that training replaces by the null class
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    positions: Positions = "rope2d"  # rotation by the grid's cell, or a learned vector ("learned")

    def __post_init__(self) -> None:  # noqa: C901 - a list of checks
        for name in ("vocab_size", "dim", "n_layer", "n_head", "num_classes", "block_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, not {getattr(self, name)}")
        if self.n_layer > MAX_LAYERS:
            raise ConfigError(f"n_layer: must be at most {MAX_LAYERS}, not {self.n_layer}")
        for name in ("norm_eps", "rope_base"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: must be positive, not {getattr(self, name)}")
        if self.dim % self.n_head or self.head_dim % 4:
            raise ConfigError(
                f"n_head: {self.dim} channels in {self.n_head} heads do not give heads of a "
                "multiple of 4 channels, which two-dimensional rotation needs"
            )
        if self.grid_size**2 != self.block_size:
            raise ConfigError(f"block_size: {self.block_size} is not a square grid")
        if self.positions not in get_args(Positions):
            raise ConfigError(f"positions: must be rope2d or learned, not {self.positions!r}")
        for name in ("token_dropout", "resid_dropout", "ffn_dropout", "class_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name}: must be in [0, 1), not {getattr(self, name)}")

    @classmethod
    def named(
        cls, name: str, *, vocab_size: int = 16384, num_classes: int = 1000, block_size: int = 256
    ) -> GPTConfig:
        """One of LlamaGen's sizes, for example ``GPT-B``."""
        if name not in GPT_SIZES:
            raise ConfigError(f"no transformer size {name!r}; there are {', '.join(GPT_SIZES)}")
        dim, n_layer, n_head = GPT_SIZES[name]
        return cls(vocab_size, dim, n_layer, n_head, num_classes, block_size)

    @property
    def head_dim(self) -> int:
        """D."""
        return self.dim // self.n_head

    @property
    def grid_size(self) -> int:
        """Grid cells a side."""
        return math.isqrt(self.block_size)

    @property
    def ffn_dim(self) -> int:
        """Hidden width of the feed-forward block: two thirds of 4 C, rounded up to 256."""
        return -(-int(2 * (4 * self.dim) / 3) // 256) * 256

    @property
    def num_class_rows(self) -> int:
        """Rows of the class embedding: the null class exists only where labels are dropped."""
        return self.num_classes + (1 if self.class_dropout > 0 else 0)

    @property
    def num_parameters(self) -> int:
        """``2 K C + classes C + C + n_layer (4 C^2 + 3 C ffn + 2 C)``; ``(1 + L) C`` if learned."""
        layer = 4 * self.dim**2 + 3 * self.dim * self.ffn_dim + 2 * self.dim
        embeddings = 2 * self.vocab_size + self.num_class_rows
        if self.positions == "learned":
            embeddings += 1 + self.block_size
        return (embeddings + 1) * self.dim + self.n_layer * layer
