from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.kv_cache import KVCache
from masc_core.models.rope import rope_2d, rotation
from masc_core.models.rows import Rows
from masc_core.models.slot_cache import SlotCache, attend_plainly

CONFIG = GPTConfig(vocab_size=5, dim=24, n_layer=2, n_head=2, num_classes=3, block_size=16)
TURNS = rotation(rope_2d(12, 20))  # 145 positions, more than a kernel takes at once


def case(dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    """Five rows at positions of their own in six slots, which were used before."""
    torch.manual_seed(0)
    positions = torch.tensor([0, 3, 64, 130, 143])
    made = {
        "qkv": torch.randn(5, 9, 20).to(dtype),
        "turns": TURNS[positions],
        "slots": torch.tensor([4, 2, 0, 5, 1]),
        "positions": positions,
        "keys": torch.randn(6, 3, 144, 20).to(dtype),
        "values": torch.randn(6, 3, 144, 20).to(dtype),
    }
    return {name: tensor.to(device) for name, tensor in made.items()}


def test_steps_are_those_of_the_cache_that_takes_groups() -> None:
    torch.manual_seed(0)
    model = GPT(CONFIG).eval()
    torch.nn.init.normal_(model.output.weight)
    grouped, single = KVCache(CONFIG, 3), SlotCache(CONFIG, 4)
    ids = torch.tensor([0, 2, 3])
    slots = torch.tensor([3, 0, 1])
    for position in range(16):
        rows = Rows.abreast(ids, position)
        with torch.inference_mode():
            expected = model.step(rows, grouped).logits
            actual = model.step(Rows(ids, rows.positions, slots), single).logits
        torch.testing.assert_close(actual, expected)
        ids = expected.argmax(1)


def test_what_others_left_in_a_slot_does_not_matter() -> None:
    given = case(torch.float32)
    expected = attend_plainly(**given)
    for row, slot in enumerate(given["slots"].tolist()):
        behind = int(given["positions"][row]) + 1
        given["keys"][slot, :, behind:] = math.nan
        given["values"][slot, :, behind:] = math.inf
    assert torch.equal(attend_plainly(**given), expected)


def check_kernel(dtype: torch.dtype, device: str, tolerance: dict[str, Any]) -> None:
    from masc_core.models.decode_attention import attend  # noqa: PLC0415 - needs Triton

    plain, fused = case(dtype, device), case(dtype, device)
    expected, actual = attend_plainly(**plain), attend(**fused)
    torch.testing.assert_close(actual, expected, **tolerance)
    torch.testing.assert_close(fused["keys"], plain["keys"], **tolerance)
    assert torch.equal(fused["values"], plain["values"])
    for row in range(5):  # alone it has the same bits
        alone = case(dtype, device)
        for name in ("qkv", "turns", "slots", "positions"):
            alone[name] = alone[name][row : row + 1]
        assert torch.equal(attend(**alone)[0], actual[row])


TOLERANCES = [
    (torch.float32, {"rtol": 1e-5, "atol": 1e-5}),
    (torch.bfloat16, {"rtol": 1.6e-2, "atol": 1e-2}),
]


@pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")  # Triton's own
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_the_kernel_is_the_plain_function(
    dtype: torch.dtype, tolerance: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("Triton's interpreter would be left in the process")
    if np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip("Triton's interpreter takes arrays of one number for numbers")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton")
    check_kernel(dtype, "cpu", tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_the_kernel_on_a_gpu(dtype: torch.dtype, tolerance: dict[str, Any]) -> None:
    check_kernel(dtype, "cuda", tolerance)
