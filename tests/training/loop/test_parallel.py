from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.rank_processes import all_well
from training.loop.distributed import init_distributed
from training.loop.ema import EMA
from training.loop.parallel import (
    checkpoint_activations,
    compile_each,
    full_state_dict,
    reshard,
    shard,
)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.GELU()) for _ in range(3)]
    return nn.Sequential(nn.Linear(4, 6), *layers)


def gradients(model: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)
    model(torch.linspace(-1, 1, 20).view(5, 4)).square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_what_is_computed_again_has_the_same_gradients() -> None:
    plain, frugal = network(), network()
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    next(frugal[1].children()).register_forward_hook(count)
    checkpoint_activations(list(frugal)[1:])
    pairs = zip(gradients(plain), gradients(frugal), strict=True)
    assert all(torch.equal(expected, actual) for expected, actual in pairs)
    assert calls == 2


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, when it compiles
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_what_is_computed_again_is_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, compiled = network(), network()
    graphs: list[int] = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    parts = list(compiled)[1:]
    compile_each(parts)
    checkpoint_activations(parts)
    pairs = zip(gradients(plain), gradients(compiled), strict=True)
    assert all(torch.equal(expected, actual) for expected, actual in pairs)
    assert graphs
    assert min(graphs) > 3  # arguments, and what is done with them


def a_sharded_model_computes_with_the_weights_that_it_has() -> None:
    with init_distributed("cpu") as ranks:
        whole = network().eval()
        sharded = copy.deepcopy(whole)
        shard(sharded, list(sharded)[1:], ranks, bfloat16=False)
        average, expected = EMA(sharded, 0.5), EMA(whole, 0.5)
        for model in (whole, sharded):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.5)
        average.update()
        expected.update()
        x = torch.ones(2, 4)
        with torch.inference_mode():
            with average.in_place(), expected.in_place():
                torch.testing.assert_close(sharded(x), whole(x))
            reshard(sharded)
            torch.testing.assert_close(sharded(x), whole(x))
        state = full_state_dict(sharded, torch.device("cpu"), ranks)
        assert (state is None) == (ranks.rank == 1)
        if state is not None:
            torch.testing.assert_close(state, dict(whole.state_dict()))


def test_averages_reach_the_forward_pass_of_a_sharded_model() -> None:
    all_well(2, a_sharded_model_computes_with_the_weights_that_it_has)
