from __future__ import annotations

import torch
from torch import Tensor

from masc_core.models.gpt import GPT
from masc_core.models.kv_cache import KVCache, Rows


def rows_at(position: int, ids: Tensor) -> Rows:
    """Rows that are all at one position, each in the slot of its own number."""
    return Rows(ids, torch.full_like(ids, position), torch.arange(len(ids)))


def step_logits(model: GPT, rows: Rows, cache: KVCache) -> Tensor:
    """Logits of one position of every row; the cache holds the earlier ones, and then these."""
    x, branch, cos_sin = model.embed(rows)
    for block, layer in zip(model.blocks, cache.layers, strict=True):
        x, branch = block.step(x, branch, cos_sin, rows, layer)
    return model.head(x, branch).logits
