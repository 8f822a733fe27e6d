from __future__ import annotations

import torch
from torch import Tensor

from masc_core.models.kv_cache import Rows


def rows_at(position: int, ids: Tensor) -> Rows:
    """Rows that are all at one position, each in the slot of its own number."""
    return Rows(ids, torch.full_like(ids, position), torch.arange(len(ids)))
