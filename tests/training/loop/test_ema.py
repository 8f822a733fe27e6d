from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.training.operators import Operators
from training.loop.ema import EMA


def moved(model: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by)


def test_starts_at_the_parameters_and_follows_the_formula() -> None:
    model = nn.Linear(2, 3)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    average = EMA(model, 0.75)
    for _ in range(4):
        moved(model, 1.0)
        average.update()
        for name, parameter in model.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * parameter.detach()
    assert average.values.keys() == expected.keys()
    for name, value in average.values.items():
        torch.testing.assert_close(value, expected[name])


def test_an_update_is_one_call_however_many_parameters_there_are() -> None:
    average = EMA(nn.Sequential(*(nn.Linear(2, 2) for _ in range(9))), 0.75)
    with Operators() as called:
        average.update()
    assert called.names == ["aten._foreach_lerp_.Scalar"]


def test_the_model_has_the_averages_for_a_while() -> None:
    model = nn.BatchNorm1d(2)
    average = EMA(model, 0.5)
    moved(model, 1.0)
    average.update()
    with average.in_place():
        assert model.weight.tolist() == [1.5, 1.5]
        model.get_buffer("running_mean").fill_(7)
    assert model.weight.tolist() == [2.0, 2.0]
    with pytest.raises(RuntimeError, match="in between"), average.in_place():
        raise RuntimeError("in between")
    assert model.weight.tolist() == [2.0, 2.0]
    assert average.values["weight"].tolist() == [1.5, 1.5]
    assert model.get_buffer("running_mean").tolist() == [7.0, 7.0]
