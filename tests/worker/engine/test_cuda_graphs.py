"""The captured steps, done here without being captured, against the plain loop.

The number of rows is another one than in the plain loop, and attention sums in another order:
entropies agree nearly, and codes, whose draws would have to be that near to a tie, are the same.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import partial

import pytest
import torch

from masc_core.errors import NonFiniteError
from masc_core.generation.batch import StepShape, allocate
from masc_core.generation.generate import generate
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.prior import ClusterMap
from masc_core.sampling.in_cluster import CodeSampler
from masc_core.sampling.params import SamplingParams
from tests.tiny_bundle import GRID
from tests.worker.engine.test_engine import (
    CAPACITIES,
    LENGTH,
    PARAMS,
    TASKS,
    Alone,
    Models,
    follow,
    models,
    run,
    some_params,
)
from worker.engine.cuda_graphs import GraphBatch, capture_shapes, select_shape
from worker.engine.engine import Backend, Engine
from worker.engine.request import EngineOutput, FailedImage, FinishedImage, ImageTask, PartialImage

__all__ = ["models"]  # a fixture
TOLERANCE = 1e-4
GRAPHS = [Backend("graphs", GraphBatch)]


@pytest.mark.parametrize("deterministic", [False, True])
def test_random_schedules_give_every_image_what_it_gets_alone(
    models: Models, deterministic: bool
) -> None:
    rng = random.Random(deterministic)
    alone, params_list = Alone(models, TOLERANCE), some_params(rng)
    make = partial(GraphBatch, deterministic=deterministic)
    for capacity in CAPACITIES:
        engine = Engine(*models, capacity_rows=capacity, backends=[Backend("graphs", make)])
        for outcome in follow(engine, params_list, rng):
            alone.check(outcome)


def test_capturing_all_shapes_does_not_disturb_who_is_here(models: Models) -> None:
    alone, engine = Alone(models, TOLERANCE), Engine(*models, 16, backends=GRAPHS)
    for task in TASKS:
        engine.add(task)
    engine.step()
    engine.prepare()
    outcomes = run(engine)
    assert len(outcomes) == len(TASKS)
    for outcome in outcomes.values():
        alone.check(outcome)


def test_previews_are_what_is_drawn_so_far(models: Models) -> None:
    engine = Engine(*models, 16, backends=GRAPHS)
    engine.add(replace(TASKS[0], preview_rows=(1, GRID - 1)))
    outcomes = [(step, outcome) for step in range(1, LENGTH + 2) for outcome in engine.step()]
    *partial_images, finished = [outcome for _, outcome in outcomes]
    assert isinstance(finished, FinishedImage)
    for preview, rows in zip(partial_images, (1, GRID - 1), strict=True):
        assert isinstance(preview, PartialImage)
        assert torch.equal(preview.codes, finished.codes[: rows * GRID])
    # A step late: it is read while the next step runs.
    assert [step for step, _ in outcomes] == [GRID + 1, LENGTH - GRID + 1, LENGTH + 1]


def test_rows_of_an_image_are_free_while_it_is_read(models: Models) -> None:
    alone, engine = Alone(models, TOLERANCE), Engine(*models, 2, backends=GRAPHS)
    engine.add(TASKS[0])
    for _ in range(LENGTH):
        assert engine.step() == ()
    assert (engine.free_rows, engine.tasks) == (2, TASKS[:1])
    with pytest.raises(ValueError, match="here already"):
        engine.add(TASKS[0])
    engine.add(TASKS[2])  # into the rows of the first
    (first,) = engine.step()
    (second,) = run(engine).values()
    alone.check(first)
    alone.check(second)


def test_what_is_cancelled_while_it_is_read_has_no_outcome(models: Models) -> None:
    engine = Engine(*models, 2, backends=GRAPHS)
    engine.add(TASKS[0])
    for _ in range(LENGTH):
        engine.step()
    engine.cancel(TASKS[0].key)
    assert engine.tasks == []
    assert engine.step() == ()


def test_an_image_that_is_not_finite_fails_alone_a_step_later(models: Models) -> None:
    with torch.no_grad():
        models[0].cls_embedding.embedding_table.weight[3] = math.nan
    alone, engine = Alone(models, TOLERANCE), Engine(*models, 16, backends=GRAPHS)
    for task in TASKS:
        engine.add(task)
    assert engine.step() == ()
    (bad,) = engine.step()
    assert isinstance(bad, FailedImage)
    assert bad.task is TASKS[3]
    assert isinstance(bad.error, NonFiniteError)
    assert engine.free_rows == 9
    outcomes = run(engine)
    assert len(outcomes) == 4
    for outcome in outcomes.values():
        alone.check(outcome)


def test_who_gets_the_slot_of_a_failed_image_does_not_fail(models: Models) -> None:
    with torch.no_grad():
        models[0].cls_embedding.embedding_table.weight[3] = math.nan
    alone, engine = Alone(models, TOLERANCE), Engine(*models, 2, backends=GRAPHS)
    engine.add(TASKS[3])
    engine.add(TASKS[1])
    assert engine.step() == ()
    engine.cancel(TASKS[3].key)  # before anyone knows
    other = ImageTask("other", 0, PARAMS[1])
    engine.add(other)  # takes the slot
    outcomes = run(engine)
    assert set(outcomes) == {TASKS[1].key, other.key}
    for outcome in outcomes.values():
        alone.check(outcome)


def test_an_image_that_fails_at_its_last_position_is_not_finished(models: Models) -> None:
    engine = Engine(*models, 4, backends=GRAPHS)
    engine.add(TASKS[0])
    engine.add(TASKS[1])
    for _ in range(LENGTH - 1):
        assert engine.step() == ()
    with torch.no_grad():
        models[0].norm.weight.fill_(math.inf)
    bad = [*engine.step(), *engine.step()]
    assert [outcome.task for outcome in bad] == TASKS[:2]
    assert all(isinstance(outcome, FailedImage) for outcome in bad)
    assert engine.free_rows == 4
    assert not engine.tasks


@pytest.mark.parametrize(
    "where", ["masc_core.generation.batch.pack_params", "worker.engine.cuda_graphs.lay_out"]
)
def test_after_an_exception_the_images_go_on_where_they_were(
    models: Models, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    alone, engine = Alone(models, TOLERANCE), Engine(*models, 16, backends=GRAPHS)
    engine.add(TASKS[0])
    engine.step()
    engine.add(TASKS[1])
    with monkeypatch.context() as patch:
        patch.setattr(where, fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.step()
    assert engine.tasks == TASKS[:2]
    outcomes = run(engine)
    assert list(outcomes) == [TASKS[0].key, TASKS[1].key]
    for outcome in outcomes.values():
        alone.check(outcome)


def gpu_models(dtype: torch.dtype) -> Models:
    """A transformer of which no draw is sure, on a GPU."""
    torch.manual_seed(0)
    config = GPTConfig(512, dim=256, n_layer=4, n_head=4, num_classes=5, block_size=64)
    with torch.device("cuda"):
        model = GPT(config).to(dtype).eval()
        torch.nn.init.normal_(model.output.weight, std=0.05)
    return model, CodeSampler(ClusterMap.identity(512), torch.ones(512).long(), "cuda")


def made_alone(
    models: Models, deterministic: bool, capacity: int
) -> dict[SamplingParams, EngineOutput]:
    make = partial(GraphBatch, deterministic=deterministic)
    engine = Engine(*models, capacity, backends=[Backend("graphs", make)])
    made: dict[SamplingParams, EngineOutput] = {}
    for i, params in enumerate(some_params(random.Random(1))):
        (made[params],) = run(engine, [ImageTask("alone", i, params)]).values()
    return made


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.timeout(600)
def test_deterministic_steps_give_an_image_the_same_bits_in_any_company(
    dtype: torch.dtype,
) -> None:
    models, rng = gpu_models(dtype), random.Random(0)
    alone = made_alone(models, deterministic=True, capacity=32)
    make = partial(GraphBatch, deterministic=True)
    for _ in range(4):
        engine = Engine(*models, 32, backends=[Backend("graphs", make)])
        for outcome in follow(engine, list(alone), rng):
            expected = alone[outcome.task.params]
            assert isinstance(outcome, FinishedImage)
            assert isinstance(expected, FinishedImage)
            assert torch.equal(outcome.codes, expected.codes)
            assert torch.equal(outcome.entropies, expected.entropies)


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_captured_steps_in_float32_agree_with_the_plain_loop() -> None:
    models = gpu_models(torch.float32)
    alone = made_alone(models, deterministic=False, capacity=32)
    rng, positions, different = random.Random(0), 0, 0
    engine = Engine(*models, 32, backends=GRAPHS)
    engine.prepare()
    for outcome in follow(engine, list(alone), rng):
        assert isinstance(outcome, FinishedImage)
        made = generate(*models, [outcome.task.params])
        # After a draw that differs the image is another one: only the first one counts.
        same = (outcome.codes == made.codes[0].cpu()).int().cumprod(0).sum().item()
        positions += int(same)
        different += same < 64
    assert different <= 0.001 * positions


PLAIN, GUIDED = SamplingParams(0, 1.0, seed=0), SamplingParams(0, 2.0, seed=0)


def test_shapes_of_a_capacity() -> None:
    assert [shape[:2] for shape in capture_shapes(12) if not shape.has_filters] == [
        (2, 1), (2, 2), (4, 2), (4, 4), (8, 4), (8, 8), (12, 6), (12, 12),
    ]  # fmt: skip
    assert capture_shapes(1)[-1] == StepShape(2, 2, has_filters=True)
    assert capture_shapes(33)[-1] == StepShape(34, 34, has_filters=True)
    assert capture_shapes(12, only_largest=True) == [StepShape(12, 12, True)]
    assert capture_shapes(12, only_largest=True, with_refiner=True) == [StepShape(12, 12, True, 12)]
    with_refiner = capture_shapes(12, with_refiner=True)
    assert [shape for shape in with_refiner if not shape.refined] == capture_shapes(12)
    assert len(with_refiner) == 2 * len(capture_shapes(12))


@pytest.mark.parametrize(
    ("params_list", "expected"),
    [
        ([PLAIN], (2, 1, False)),
        ([GUIDED], (2, 1, False)),
        ([PLAIN, PLAIN], (2, 2, False)),
        ([GUIDED, PLAIN], (4, 2, False)),
        ([PLAIN] * 3, (4, 4, False)),
        ([PLAIN] * 3 + [SamplingParams(0, 2.0, seed=0, top_p=0.5)], (8, 4, True)),
        ([SamplingParams(0, 1.0, seed=0, top_k=5)], (2, 1, True)),
        ([GUIDED] * 6, (12, 6, False)),
    ],
)
def test_a_batch_takes_the_smallest_shape(
    params_list: list[SamplingParams], expected: tuple[int, int, bool]
) -> None:
    slots = allocate(params_list, [], 12)
    assert select_shape(capture_shapes(12), slots) == StepShape(*expected)
    assert select_shape(capture_shapes(12, with_refiner=True), slots) == StepShape(*expected)
    alike = capture_shapes(12, only_largest=True, with_refiner=True)
    assert select_shape(alike, slots) == alike[0]


def test_only_who_asks_for_the_refiner_gets_a_shape_with_it() -> None:
    shapes = capture_shapes(12, with_refiner=True)
    refined = SamplingParams(0, 1.0, seed=0, decoding="refine")
    assert select_shape(shapes, allocate([PLAIN], [], 12)) == StepShape(
        2, 1, has_filters=False, refined=0
    )
    chosen = select_shape(shapes, allocate([GUIDED, refined], [], 12))
    assert chosen == StepShape(4, 2, has_filters=False, refined=2)
