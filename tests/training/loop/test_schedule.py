from __future__ import annotations

import math

import pytest
import torch

from training.loop.schedule import learning_rate, set_learning_rate


def rate(step: int, *, warmup: int = 0, ratio: float = 0.1) -> float:
    return learning_rate(step, total_steps=100, peak=2.0, min_ratio=ratio, warmup_steps=warmup)


def test_cosine_from_peak_to_its_share() -> None:
    assert rate(0) == 2.0
    assert rate(50) == pytest.approx(2.0 * 0.55)
    assert rate(100) == pytest.approx(0.2)
    assert rate(25) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))))


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    assert [rate(s, warmup=4) for s in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_ratio_one_is_constant() -> None:
    assert {rate(s, ratio=1.0) for s in range(100)} == {2.0}


def test_every_group_gets_the_rate() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 9.0} for _ in range(2)]
    optimizer = torch.optim.AdamW(groups)
    set_learning_rate(optimizer, 0.25)
    assert [g["lr"] for g in optimizer.param_groups] == [0.25, 0.25]
