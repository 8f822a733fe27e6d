from __future__ import annotations

import math

import pytest
import torch

from masc_core.generation.generate import generate
from masc_core.image_spec import ImageSpec
from masc_core.in_cluster import InClusterDecoder
from masc_core.models.gpt import GPT
from tests.tiny_bundle import GRID, tiny_parts
from worker.engine.graphs import GraphRunner
from worker.engine.runner import Runner, RunnerFactory

Models = tuple[GPT, InClusterDecoder]

SPECS = [ImageSpec(0, 2.0, seed=1), ImageSpec(1, 1.0, seed=2, top_k=3), ImageSpec(3, 3.0, seed=3)]
RUNNERS = pytest.mark.parametrize("make", [Runner, GraphRunner])


@pytest.fixture
def models() -> Models:
    parts = tiny_parts()
    return parts.model.eval(), InClusterDecoder(parts.prior, parts.counts)


@RUNNERS
def test_it_remembers_what_was_drawn(models: Models, make: RunnerFactory) -> None:
    runner = make(*models, 8)
    runner.prepare()
    first, second = runner.join(SPECS[:2])
    with torch.inference_mode():
        for _ in range(3):
            assert not runner.step().failed
        (third,) = runner.join(SPECS[2:])
        assert runner.num_rows == 5
        for _ in range(GRID**2 - 3):
            runner.step()
        runner.leave([first, second])
        for _ in range(3):
            runner.step()
        codes, entropies, finite = runner.read([third, first, second])
    assert finite.all()
    for i, spec in enumerate([SPECS[2], *SPECS[:2]]):
        made = generate(*models, [spec])
        assert torch.equal(codes[i], made.codes[0])
        torch.testing.assert_close(entropies[i], made.entropies[0])


@RUNNERS
def test_slots_of_those_who_left_are_given_again(models: Models, make: RunnerFactory) -> None:
    runner = make(*models, 4)
    slots = runner.join([SPECS[1]] * 4)
    with pytest.raises(ValueError, match="1 rows do not fit, 0 are free"):
        runner.join(SPECS[1:2])
    runner.leave(slots[1:3])
    assert runner.num_rows == 2
    assert runner.join(SPECS[:1]) == [slots[1]]


@RUNNERS
@pytest.mark.parametrize("position", [0, GRID**2 - 1])
def test_who_is_not_finite_is_told_by_a_step_or_at_the_end(
    models: Models, make: RunnerFactory, position: int
) -> None:
    runner = make(*models, 8)
    slots = runner.join(SPECS)
    failed: set[int] = set()
    with torch.inference_mode():
        for step in range(GRID**2):
            if step == position:
                models[0].cls_embedding.embedding_table.weight[3] = math.nan
                runner.leave(slots[2:])  # it comes anew, and is the only one of its class
                slots[2:] = runner.join(SPECS[2:])
            failed |= set(runner.step().failed)
        if position:
            failed |= {s for s, ok in zip(slots, runner.read(slots).finite, strict=True) if not ok}
    assert failed == {slots[2]}
