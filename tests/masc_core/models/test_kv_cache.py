from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from masc_core.models.gpt_config import GPTConfig
from masc_core.models.kv_cache import KVCache
from masc_core.models.rows import Rows, grouped

CONFIG = GPTConfig(vocab_size=5, dim=16, n_layer=2, n_head=4, block_size=9)


def rows_of(slots: list[int], positions: list[int]) -> Rows:
    tensors = torch.tensor(positions), torch.tensor(slots)
    return Rows(torch.zeros(len(slots)).long(), *tensors, grouped(slots, positions))


def plain_attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One head: (D,) over (T, D), in float64."""
    scores = keys.double() @ query.double() / math.sqrt(len(query))
    return (scores.softmax(0) @ values.double()).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_row_attends_to_its_own_past(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    cache = KVCache(CONFIG, 6, dtype)
    slots, starts = [4, 5, 1, 2, 0], [0, 0, 2, 2, 5]  # rows join at different steps
    past: list[list[tuple[Tensor, Tensor]]] = [[] for _ in slots]
    for step in range(9):
        here = [row for row, start in enumerate(starts) if start <= step]
        rows = rows_of([slots[row] for row in here], [step - starts[row] for row in here])
        q, k, v = torch.randn(3, len(here), 4, 4).to(dtype)
        for place, row in enumerate(here):
            past[row].append((k[place], v[place]))
        for layer in range(2):
            sign = 1 - 2 * layer  # the layers do not mix
            cache.layers[layer].write(rows, sign * k, v)
            attended = cache.layers[layer].attend(rows, q)
            for place, row in enumerate(here):
                keys, values = map(torch.stack, zip(*past[row], strict=True))  # (T, H, D)
                for head in range(4):
                    expected = plain_attention(
                        q[place, head], sign * keys[:, head], values[:, head]
                    )
                    torch.testing.assert_close(attended[place, head].float(), expected)


def test_rows_behind_the_last_group_are_padding() -> None:
    cache = KVCache(CONFIG, 2)
    rows = rows_of([1], [0])
    zeros = torch.zeros(3).long()
    padded = Rows(zeros, zeros, zeros, rows.groups)
    qkv, turns = torch.randn(3, 12, 4), torch.randn(3, 2, 4)
    alone = cache.layers[0].step(qkv[:1], turns[:1], rows)
    cache.layers[0].keys.fill_(math.nan)
    attended = cache.layers[0].step(qkv, turns, padded)
    assert torch.equal(attended[:1], alone)
    assert attended.shape == (3, 4, 4)
    assert attended.isfinite().all()
    assert cache.layers[0].keys[0].isnan().all()


def test_a_slot_may_be_taken_again() -> None:
    layer = KVCache(CONFIG, 1).layers[0]
    layer.keys.fill_(math.nan)
    layer.values.fill_(math.nan)
    value = torch.randn(1, 4, 4)
    rows = rows_of([0], [0])
    layer.write(rows, torch.randn(1, 4, 4), value)
    torch.testing.assert_close(layer.attend(rows, torch.randn(1, 4, 4)), value)


def test_room_is_for_every_position_of_every_slot() -> None:
    cache = KVCache(CONFIG, 3)
    assert cache.num_slots == 3
    assert [tuple(layer.keys.shape) for layer in cache.layers] == [(3, 4, 9, 4)] * 2
    assert [tuple(layer.values.shape) for layer in cache.layers] == [(3, 4, 9, 4)] * 2
