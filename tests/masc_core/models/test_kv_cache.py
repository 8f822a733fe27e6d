from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from masc_core.cpu_kernels import attention
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.kv_cache import (
    Attention,
    KVCache,
    Rows,
    attention_reference,
    choose_attention,
)
from masc_core.models.rope import rope_table

CONFIG = GPTConfig(vocab_size=5, dim=24, n_layer=2, n_head=2, num_classes=3, block_size=16)
UNROTATED = torch.stack([torch.ones(5, 12), torch.zeros(5, 12)], dim=1)
COS_SIN = rope_table(12, 20)  # 145 positions, more than a kernel takes at once


def case(dtype: torch.dtype, device: str = "cpu") -> dict[str, Any]:
    """Five rows at positions of their own in six slots, which were used before."""
    torch.manual_seed(0)
    positions = torch.tensor([0, 3, 64, 130, 143])
    made = {
        "qkv": torch.randn(5, 9, 20).to(dtype),
        "cos_sin": COS_SIN[positions],
        "slots": torch.tensor([4, 2, 0, 5, 1]),
        "positions": positions,
        "keys": torch.randn(6, 3, 144, 20).to(dtype),
        "values": torch.randn(6, 3, 144, 20).to(dtype),
    }
    return {name: tensor.to(device) for name, tensor in made.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_every_row_attends_to_its_own_past(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    cache = KVCache(CONFIG, 6, dtype)
    slots, starts = [4, 5, 1, 2, 0], [0, 0, 2, 2, 5]  # rows join at different steps
    past: list[list[tuple[Tensor, Tensor]]] = [[] for _ in slots]
    for step in range(9):
        here = [row for row, start in enumerate(starts) if start <= step]
        positions = torch.tensor([step - starts[row] for row in here])
        rows = Rows(positions, positions, torch.tensor([slots[row] for row in here]))
        qkv = torch.randn(len(here), 6, 12).to(dtype)
        for place, row in enumerate(here):
            past[row].append((qkv[place, 2:4], qkv[place, 4:]))
        for layer in range(2):
            sign = 1 - 2 * layer  # the layers do not mix
            attended = cache.layers[layer].step(sign * qkv, UNROTATED[: len(here)], rows)
            for place, row in enumerate(here):
                keys, values = map(torch.stack, zip(*past[row], strict=True))  # (T, H, D)
                for head in range(2):
                    expected = plain_attention(qkv[place, head], keys[:, head], values[:, head])
                    actual = sign * attended[place, head].double()
                    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def plain_attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One head: (D,) over (T, D), in float64."""
    scores = keys.double() @ query.double() / math.sqrt(len(query))
    return scores.softmax(0) @ values.double()


def test_room_is_for_every_position_of_every_slot() -> None:
    cache = KVCache(CONFIG, 3)
    assert [tuple(layer.keys.shape) for layer in cache.layers] == [(3, 2, 16, 12)] * 2
    assert [tuple(layer.values.shape) for layer in cache.layers] == [(3, 2, 16, 12)] * 2


@pytest.mark.parametrize(
    ("dtype", "attention"),
    [
        (torch.float32, attention.attend),
        (torch.bfloat16, attention.attend),
        (torch.float64, attention_reference),
    ],
)
def test_a_cpu_has_a_kernel_for_what_models_are_served_in(
    dtype: torch.dtype, attention: Attention
) -> None:
    assert choose_attention(dtype, torch.device("cpu")) is attention


@pytest.mark.parametrize("attend", [attention_reference, attention.attend])
def test_what_others_left_in_a_slot_does_not_matter(attend: Callable[..., Tensor]) -> None:
    given = case(torch.float32)
    expected = attend(**given)
    for row, slot in enumerate(given["slots"].tolist()):
        behind = int(given["positions"][row]) + 1
        given["keys"][slot, :, behind:] = math.nan
        given["values"][slot, :, behind:] = math.inf
    assert torch.equal(attend(**given), expected)


def check_kernel(
    attend: Callable[..., Tensor], dtype: torch.dtype, device: str, tolerance: dict[str, Any]
) -> None:
    plain, fused = case(dtype, device), case(dtype, device)
    expected, actual = attention_reference(**plain), attend(**fused)
    torch.testing.assert_close(actual, expected, **tolerance)
    torch.testing.assert_close(fused["keys"], plain["keys"], **tolerance)
    assert torch.equal(fused["values"], plain["values"])
    for row in range(5):  # alone it has the same bits
        alone = case(dtype, device)
        for name in ("qkv", "cos_sin", "slots", "positions"):
            alone[name] = alone[name][row : row + 1]
        assert torch.equal(attend(**alone)[0], actual[row])


TOLERANCES = [
    (torch.float32, {"rtol": 1e-5, "atol": 1e-5}),
    (torch.bfloat16, {"rtol": 1.6e-2, "atol": 1e-2}),
]


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_the_kernel_of_a_cpu(
    dtype: torch.dtype, tolerance: dict[str, Any], num_threads: int
) -> None:
    torch.set_num_threads(1)
    expected = attention.attend(**case(dtype))
    torch.set_num_threads(num_threads)
    check_kernel(attention.attend, dtype, "cpu", tolerance)
    assert torch.equal(attention.attend(**case(dtype)), expected)


def test_weights_are_exponentials_wherever_scores_lie() -> None:
    """Attention to values that are the unit vectors shows the weights themselves."""
    num = 200
    scores = torch.linspace(-100, 0, num, dtype=torch.float64)
    keys, values = torch.zeros(1, 1, num, num), torch.eye(num)[None, None]
    keys[0, 0, :, 0] = scores.float()
    qkv = torch.zeros(1, 3, num)
    qkv[0, 0, 0] = math.sqrt(num)
    qkv[0, 1], qkv[0, 2] = keys[0, 0, -1], values[0, 0, -1]
    rotation = torch.stack([torch.ones(num), torch.zeros(num)])[None]
    zero, last = torch.tensor([0]), torch.tensor([num - 1])
    attended = attention.attend(qkv, rotation, zero, last, keys, values)[0, 0]
    expected = keys[0, 0, :, 0].double().softmax(0)
    torch.testing.assert_close(attended.double(), expected, rtol=2e-5, atol=1e-37)


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
    from masc_core.models import decode_attention  # noqa: PLC0415 - needs Triton

    check_kernel(decode_attention.attend, dtype, "cpu", tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
def test_the_kernel_on_a_gpu(dtype: torch.dtype, tolerance: dict[str, Any]) -> None:
    from masc_core.models import decode_attention  # noqa: PLC0415 - needs Triton

    check_kernel(decode_attention.attend, dtype, "cuda", tolerance)
