"""The refiner: from the transformer's hidden state and a cluster to one of the cluster's codes.

One causal pre-norm layer, as a Transformer decoder's, over ``x_t = W h_t + E_c[z_t] + E_f[f_{t-1}]
+ pos_t`` with h_t the hidden state that predicted cluster z_t, and f_{t-1} the code drawn before;
code j of cluster z_t scores ``<LN(y_t), E_out[j]>``. Before the first position there is no code:
``pos_0``, which occurs nowhere else, stands for its absence. A refiner that is not autoregressive
has neither E_f nor pos. The transformer never sees codes, so whatever the refiner draws changes no
cluster. The paper gives width, heads and an approximate size; this is the design that has that
size.

Legend: B images, R rows, T positions, V codes, K clusters, D width, H heads, C the transformer's
width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc_core.errors import ConfigError
from masc_core.models.kv_cache import KVLayer, Rows
from masc_core.models.projection import Projection


@dataclass(frozen=True, slots=True)
class RefinerConfig:
    """Sizes and dropout rate of a refiner.

    A value that no refiner can have is a `ConfigError`, which starts with the field.
    """

    num_codes: int  # V
    num_clusters: int  # K
    hidden_dim: int  # C
    block_size: int = 256  # positions of an image
    width: int = 512  # D
    n_head: int = 4  # H
    ffn_dim: int = 2048  # hidden width of the feed-forward block
    autoregressive: bool = True  # whether it reads the codes before
    dropout: float = 0.1  # rate after the sum of embeddings, attention and feed-forward block

    def __post_init__(self) -> None:
        sizes = ("num_codes", "num_clusters", "hidden_dim", "block_size", "width", "n_head")
        for name in (*sizes, "ffn_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, not {getattr(self, name)}")
        if self.width % (2 * self.n_head):
            raise ConfigError(
                f"n_head: {self.width} channels in {self.n_head} heads do not give heads of an "
                "even number of channels"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout: must be in [0, 1), not {self.dropout}")

    @property
    def head_dim(self) -> int:
        """Channels a head."""
        return self.width // self.n_head

    @property
    def num_parameters(self) -> int:
        """``D (C + K + V + 4 D + 2 ffn + 12) + ffn``, and ``D (V + T)`` if autoregressive."""
        tables = self.hidden_dim + self.num_clusters + self.num_codes
        layer = 4 * self.width + 2 * self.ffn_dim + 12  # of the 12 half are biases, half norms
        read = self.num_codes + self.block_size if self.autoregressive else 0
        return self.width * (tables + layer + read) + self.ffn_dim


class Refiner(nn.Module):
    """The model. Weights start as N(0, 0.02), biases as zeros, and so does the table of scores."""

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.hidden_projection = Projection(config.hidden_dim, width, bias=True)
        self.cluster_embedding = nn.Embedding(config.num_clusters, width)
        if config.autoregressive:
            self.code_embedding = nn.Embedding(config.num_codes, width)
            self.position_embedding = nn.Embedding(config.block_size, width)
        self.dropout = nn.Dropout(config.dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = Projection(width, 3 * width, bias=True)
        self.attention_out = Projection(width, width, bias=True)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn_in = Projection(width, config.ffn_dim, bias=True)
        self.ffn_out = Projection(config.ffn_dim, width, bias=True)
        self.norm = nn.LayerNorm(width)
        self.code_scores = nn.Embedding(config.num_codes, width)  # E_out
        self.apply(_init)
        nn.init.zeros_(self.code_scores.weight)

    def forward(self, hidden: Tensor, clusters: Tensor, codes: Tensor) -> Tensor:
        """Vectors (B, T, D) whose products with ``code_scores`` are the scores, teacher-forced.

        Parameters
        ----------
        hidden : (B, T, C), of `masc_core.models.gpt.GPT.hidden`
        clusters, codes : int64 (B, T), z and f; the last codes are not looked at
        """
        x = self.hidden_projection(hidden) + self.cluster_embedding(clusters)
        if self.config.autoregressive:
            before = F.pad(self.code_embedding(codes[:, :-1]), (0, 0, 1, 0))
            positions = self.position_embedding.weight[: x.shape[1]]
            x = x + before + positions
        x = self.dropout(x)
        q, k, v = self._heads(self.qkv(self.attention_norm(x))).chunk(3, dim=-2)  # (B, T, H, Dh)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
        x = x + self.dropout(self.attention_out(y.transpose(1, 2).flatten(2)))
        x = x + self.dropout(self.ffn_out(F.relu(self.ffn_in(self.ffn_norm(x)))))
        return self.norm(x)

    def step(self, hidden: Tensor, clusters: Tensor, rows: Rows, cache: KVLayer) -> Tensor:
        """One position of every row, with the earlier ones in the cache: (R, D), as `forward`.

        Parameters
        ----------
        hidden : (R, C)
        clusters : int64 (R,)
        rows : their ids are the codes before, anything at position 0
        cache : of this model's heads
        """
        x = self.hidden_projection.step(hidden) + self.cluster_embedding(clusters)
        if self.config.autoregressive:
            before = self.code_embedding(rows.ids).masked_fill(rows.positions[:, None] == 0, 0)
            x = x + before + self.position_embedding(rows.positions)
        qkv = self._heads(self.qkv.step(self.attention_norm(x)))  # (R, 3 H, Dh)
        y = cache.step(qkv, self._no_rotation(len(x), x.device), rows)
        x = x + self.attention_out.step(y.flatten(1).to(x.dtype))
        x = x + self.ffn_out.step(F.relu(self.ffn_in.step(self.ffn_norm(x))))
        return self.norm(x)

    def pack(self) -> None:
        """Let steps read the weights in the processor's order; see `Projection.pack`."""
        for module in self.modules():
            if isinstance(module, Projection):
                module.pack()

    def _heads(self, qkv: Tensor) -> Tensor:
        """(..., 3 D) to (..., 3 H, D / H)."""
        return qkv.view(*qkv.shape[:-1], 3 * self.config.n_head, self.config.head_dim)

    def _no_rotation(self, num_rows: int, device: torch.device) -> Tensor:
        """Cosines of 1 and sines of 0 (R, 2, D / H), for a cache rotates queries and keys."""
        one = torch.ones(num_rows, 1, self.config.head_dim, device=device)
        return torch.cat([one, torch.zeros_like(one)], dim=1)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
