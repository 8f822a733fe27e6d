from __future__ import annotations

import torch

from masc_core.models.gpt_config import GPTConfig
from masc_core.models.kv_cache import KVCache

CONFIG = GPTConfig(vocab_size=5, dim=16, n_layer=2, n_head=4, block_size=9)


def test_returns_what_was_written() -> None:
    cache = KVCache(CONFIG, 3, torch.bfloat16)
    written = torch.randn(2, 2, 9, 3, 4, 4).bfloat16()  # layer, keys or values, T, R, H, D
    for position in range(9):
        for layer in range(2):
            cache.write(layer, position, *written[layer, :, position])
    for layer in range(2):
        for length in (1, 5, 9):
            keys, values = cache.read(layer, length)
            assert keys.dtype == values.dtype == torch.bfloat16
            assert torch.equal(keys, written[layer, 0, :length].permute(1, 2, 0, 3))
            assert torch.equal(values, written[layer, 1, :length].permute(1, 2, 0, 3))


def test_room_is_for_every_position_of_every_row() -> None:
    cache = KVCache(CONFIG, 3)
    assert cache.num_rows == 3
    assert [tuple(keys.shape) for keys in cache.keys] == [(3, 4, 9, 4)] * 2
    assert [tuple(values.shape) for values in cache.values] == [(3, 4, 9, 4)] * 2
