"""The class-conditional transformer, state-dict compatible with LlamaGen's GPT and GigaTok's.

A pre-norm Llama: RMSNorm, attention, SwiGLU, no biases. Positions are two-dimensional rotations as
in LlamaGen, or learned vectors as in GigaTok, whose codes have no place in a grid. The sequence is
the class, then tokens in raster order; position p predicts token p, so the last token is never
an input. Tokens are clusters, or codes where the prior is the identity.

Between matrix products: numba loops on a CPU, compiled torch operators elsewhere.

Legend: B images, R rows of a step, T positions, L tokens of an image, C width, H heads, D head dim,
F hidden width of the feed-forward block, K vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc_core.models.gpt_config import GPTConfig
from masc_core.models.kv_cache import KERNEL_DTYPES, KVLayer, Rows
from masc_core.models.projection import PackedWeight, Projection, can_pack
from masc_core.models.rope import no_rotation, rope_table, split_rotated


class Prediction(NamedTuple):
    """What the transformer makes of rows at one position."""

    hidden: Tensor  # (R, C), after the final norm
    logits: Tensor  # float32 (R, K)


class GPT(nn.Module):
    """The model. Weights start as N(0, 0.02), the output head as zeros."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_embedding = ClassEmbedding(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        if config.positions == "learned":
            positions = torch.randn(1 + config.block_size, config.dim) * config.dim**-0.5
            self.positional_embedding = nn.Parameter(positions)
        self.tok_dropout = nn.Dropout(config.token_dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = Projection(config.dim, config.vocab_size)
        self.rope = RopeTable(config)
        self.apply(init_weights)
        nn.init.zeros_(self.output.weight)

    def forward(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """Logits of every position, teacher-forced: float32 (B, 1 + T, K), position p for token p.

        Parameters
        ----------
        labels : int64 (B,), classes; ``num_classes`` is the null class
        tokens : int64 (B, T), T < L
        """
        return self.output(self.hidden(labels, tokens)).float()

    def hidden(self, labels: Tensor, tokens: Tensor) -> Tensor:
        """Hidden states (B, 1 + T, C) after the final norm; arguments as for `forward`."""
        classes = self.cls_embedding(labels)[:, None]
        x = torch.cat([classes, self.tok_embeddings(tokens)], dim=1)
        if self.config.positions == "learned":
            x = x + self.positional_embedding[: x.shape[1]]
        x = self.tok_dropout(x)
        cos_sin = self.rope(x.shape[1])
        for block in self.layers:
            x = block(x, cos_sin)
        return self.norm(x)

    def pack(self) -> None:
        """Lay the weights out for steps, as they are now.

        On a CPU steps read copies in the processor's order (`Projection.pack`); on a GPU the first
        two products of a feed-forward block become one.
        """
        for block in self.blocks:
            block.attention.wqkv.pack()
            block.attention.wo.pack()
            block.feed_forward.pack()
        self.output.pack()

    @property
    def blocks(self) -> list[Block]:
        """The layers, by their type."""
        return [block for block in self.layers if isinstance(block, Block)]

    def embed(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Input of the first block: ``x`` and ``branch`` (R, C), and cos-sin (R, 2, D).

        ``x`` is the embedding of a row's class at position 0, of its token at any other;
        ``branch`` is zero.
        """
        first = rows.positions == 0
        classes: Tensor = self.cls_embedding(rows.ids.where(first, 0))
        tokens: Tensor = self.tok_embeddings(rows.ids.where(~first, 0))
        x = torch.where(first[:, None], classes, tokens)
        if self.config.positions == "learned":
            x = x + self.positional_embedding[rows.positions]
        return x, torch.zeros_like(x), self.rope.table[rows.positions]

    def head(self, x: Tensor, branch: Tensor) -> Prediction:
        """Hidden states and logits of the rows, from ``x`` and ``branch`` of the last block."""
        _, hidden = self.norm.step(x, branch)
        return Prediction(hidden, self.output.step(hidden).float())


class ClassEmbedding(nn.Module):
    """Classes to vectors; in training a share of the labels becomes the null class."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.null_class, self.dropout = config.num_classes, config.class_dropout
        self.embedding_table = nn.Embedding(config.num_class_rows, config.dim)

    def forward(self, labels: Tensor) -> Tensor:
        """(B,) int64 to (B, C)."""
        if self.training and self.dropout > 0:
            dropped = torch.rand(labels.shape, device=labels.device) < self.dropout
            labels = torch.where(dropped, self.null_class, labels)
        return self.embedding_table(labels)


class RopeTable(nn.Module):
    """The rotations; they follow the model's device but stay float32, outside its state.

    Where positions are learned every rotation is by nothing.
    """

    table: Tensor  # float32 (1 + L, 2, D), see `masc_core.models.rope.rope_table`

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self._config = config
        self.register_buffer("table", self._build(torch.get_default_device()), persistent=False)

    def forward(self, length: int) -> Tensor:
        """Entries of the first positions, (length, 2, D)."""
        return self.table[:length]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        # Built anew: a cast would round it, and a module from the meta device has no values yet.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.table = self._build(self.table.device)
        return self

    def _build(self, device: torch.device) -> Tensor:
        config = self._config
        if config.positions == "learned":
            return no_rotation(1 + config.block_size, config.head_dim).to(device)
        return rope_table(config.grid_size, config.head_dim, config.rope_base).to(device)


class RMSNorm(nn.Module):
    """Root mean square norm; see `rms_norm`."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to the same shape."""
        return rms_norm(x, self.weight, self.eps)

    def step(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of two (R, C), and its norm."""
        return add_rms_norm(x, branch, self.weight, self.eps)


class Block(nn.Module):
    """Attention and feed-forward, each on its normed input and added to it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, cos_sin: Tensor) -> Tensor:
        """(B, T, C) to the same shape."""
        x = x + self.attention(self.attention_norm(x), cos_sin)
        return x + self.feed_forward(self.ffn_norm(x))

    def step(
        self, x: Tensor, branch: Tensor, cos_sin: Tensor, rows: Rows, cache: KVLayer
    ) -> tuple[Tensor, Tensor]:
        """One position per row.

        A block's input and output are each the sum of two (R, C): the residual stream ``x``, and
        the ``branch`` that is not added to it yet. The next block adds them, where a compiler makes
        one kernel of the sum and the norm. ``cos_sin`` is (R, 2, D).
        """
        x, normed = self.attention_norm.step(x, branch)
        attended = self.attention.step(normed, cos_sin, rows, cache)
        x, normed = self.ffn_norm.step(x, attended)
        return x, self.feed_forward.step(normed)


class Attention(nn.Module):
    """Causal multi-head attention; ``wqkv`` holds all queries, then all keys, then all values."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.is_causal = True  # a completer's is not
        self.n_head, self.head_dim = config.n_head, config.head_dim
        self.wqkv = Projection(config.dim, 3 * config.dim)
        self.wo = Projection(config.dim, config.dim)
        self.resid_dropout = nn.Dropout(config.resid_dropout)

    def forward(self, x: Tensor, cos_sin: Tensor) -> Tensor:
        """(B, T, C) to the same shape."""
        q, k, v = self.project(x, cos_sin)  # (B, T, H, D)
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=self.is_causal
        )
        return self.resid_dropout(self.wo(y.transpose(1, 2).flatten(2)))

    def step(self, x: Tensor, cos_sin: Tensor, rows: Rows, cache: KVLayer) -> Tensor:
        """(R, C) to the same shape, one position a row; ``cos_sin`` is (R, 2, D)."""
        y = cache.step(self._heads(self.wqkv.step(x)), cos_sin, rows)  # (R, H, D)
        return self.wo.step(y.flatten(1).to(x.dtype))

    def project(self, x: Tensor, cos_sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries, rotated keys and values, each (..., T, H, D), of (..., T, C)."""
        return split_rotated(self._heads(self.wqkv(x)), cos_sin)

    def _heads(self, qkv: Tensor) -> Tensor:
        """(..., 3 C) to (..., 3 H, D)."""
        return qkv.view(*qkv.shape[:-1], 3 * self.n_head, self.head_dim)


class FeedForward(nn.Module):
    """SwiGLU: ``w2(silu(w1 x) * w3 x)``."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.w1 = Projection(config.dim, config.ffn_dim)
        self.w3 = Projection(config.dim, config.ffn_dim)
        self.w2 = Projection(config.ffn_dim, config.dim)
        self.ffn_dropout = nn.Dropout(config.ffn_dropout)
        self._packed: PackedWeight | None = None  # of w1 and w3, one below the other
        self.w13: Tensor | None = None  # the same on a GPU

    def pack(self) -> None:
        """Let steps multiply by ``w1`` and ``w3`` at once, on a CPU as they are now."""
        self.w2.pack()
        if self.w1.weight.is_cuda:
            self.fuse()
        elif can_pack(self.w1.weight):
            self._packed = PackedWeight(torch.cat([self.w1.weight, self.w3.weight]))

    def fuse(self) -> None:
        """Make ``w1`` and ``w3`` the halves of one tensor; they keep their names.

        Nothing is held twice. A second call does nothing: captured graphs read the tensor where it
        is.
        """
        if self.w13 is None:
            self.w13 = torch.cat([self.w1.weight.detach(), self.w3.weight.detach()])
            self.w1.weight.data, self.w3.weight.data = self.w13.chunk(2)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to the same shape."""
        return self.ffn_dropout(self.w2(F.silu(self.w1(x)) * self.w3(x)))

    def step(self, x: Tensor) -> Tensor:
        """(R, C) to the same shape, for one position."""
        return self.w2.step(swiglu(self._gate_up(x)))

    def _gate_up(self, x: Tensor) -> Tensor:
        """``w1 x`` and ``w3 x`` side by side, (R, 2 F)."""
        if self._packed is not None:
            return self._packed.multiply(x)
        if self.w13 is not None:
            return F.linear(x, self.w13)
        return torch.cat([self.w1(x), self.w3(x)], dim=-1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._packed = self.w13 = None  # of another type or device
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Blocks cannot be copied, and halves of a copy would be tensors of their own.
        return {**self.__dict__, "_packed": None, "w13": None}


def add_rms_norm(x: Tensor, branch: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``x + branch``, both (R, C), and its norm; see `rms_norm`."""
    if _has_kernels(x):
        return _kernels().add_rms_norm(x, branch, weight, eps)
    x = x + branch
    return x, rms_norm(x, weight, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps)`` in float32, cast back, then scaled in the low precision."""
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight


def swiglu(gate_up: Tensor) -> Tensor:
    """``silu(gate) * up`` (R, F) of gates and factors side by side, (R, 2 F)."""
    if _has_kernels(gate_up):
        return _kernels().swiglu(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def _has_kernels(x: Tensor) -> bool:
    return x.is_cpu and x.dtype in KERNEL_DTYPES and not torch.compiler.is_compiling()


@cache
def _kernels() -> ModuleType:
    from masc_core.cpu_kernels import feed_forward  # noqa: PLC0415 - takes half a second

    return feed_forward


def init_weights(module: nn.Module) -> None:
    """Draw a layer's weights or a table from N(0, 0.02)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
