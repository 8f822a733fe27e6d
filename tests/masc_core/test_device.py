from __future__ import annotations

import pytest
import torch

from masc_core.device import (
    choose_dtype,
    gpu_has_bfloat16,
    resolve_device,
    use_device,
)
from masc_core.errors import ConfigError


def test_names() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == expected


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:99", ""])
def test_what_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="device: "):
        resolve_device(name)


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", "cuda", torch.bfloat16),
        ("bfloat16", "cpu", torch.bfloat16),
        ("float32", "cuda", torch.float32),
    ],
)
def test_dtype(
    name: str, device: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert choose_dtype(name, torch.device(device)) == expected


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, torch.float32),
        ({"avx512_bf16": False, "avx512_f": True}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
    ],
)
def test_processors_with_bfloat16_use_it(
    capabilities: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_dtype("auto", torch.device("cpu")) == expected


def test_gpus_before_ampere_compute_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {(7, 0): False, (7, 5): False, (8, 0): True, (8, 9): True, (9, 0): True, (12, 0): True}
    assert {capability: gpu_has_bfloat16(capability) for capability in known} == known
    turing = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", {turing: (7, 5)}.__getitem__)
    assert choose_dtype("auto", turing) == torch.float32
    with pytest.raises(ConfigError, match="dtype: this GPU does not compute in bfloat16"):
        choose_dtype("bfloat16", turing)


def test_a_gpu_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = [resolve_device(name) for name in ("auto", "cuda", "cuda:0", "cuda:1")]
    assert found == [torch.device("cuda", number) for number in (0, 0, 0, 1)]


def test_a_thread_works_on_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    use_device(torch.device("cpu"))
    use_device(torch.device("cuda", 1))
    assert used == [torch.device("cuda", 1)]
