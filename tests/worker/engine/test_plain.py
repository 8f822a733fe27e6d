"""The plain engine against `generate` on each image alone."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from masc_core.errors import NonFiniteError
from masc_core.generate import generate
from masc_core.image_spec import ImageSpec
from masc_core.in_cluster import InClusterDecoder
from masc_core.models.gpt import GPT
from tests.tiny_bundle import GRID, tiny_parts
from worker.engine.engine import Engine, FailedImage, FinishedImage, ImageTask, TaskKey
from worker.engine.plain import PlainEngine

Models = tuple[GPT, InClusterDecoder]

SPECS = [
    ImageSpec(class_id=0, cfg_scale=2.0, seed=1),
    ImageSpec(class_id=1, cfg_scale=1.0, seed=2),
    ImageSpec(class_id=2, cfg_scale=7.5, seed=2**63 - 1, temperature=0.7, top_k=3),
    ImageSpec(class_id=3, cfg_scale=1.0, seed=0, top_p=0.5, decoding="frequency"),
    ImageSpec(class_id=4, cfg_scale=1.5, seed=1),
]
TASKS = [ImageTask("job", i, spec) for i, spec in enumerate(SPECS)]


@pytest.fixture
def models() -> Models:
    parts = tiny_parts()
    return parts.model, InClusterDecoder(parts.prior, parts.counts)


def run(engine: Engine, tasks: Sequence[ImageTask]) -> dict[TaskKey, FinishedImage | FailedImage]:
    for task in tasks:
        engine.add(task)
    return {outcome.task.key: outcome for outcome in engine.step()}


def finished(outcome: FinishedImage | FailedImage) -> FinishedImage:
    assert isinstance(outcome, FinishedImage)
    return outcome


def assert_as_if_alone(outcome: FinishedImage | FailedImage, models: Models) -> None:
    image = finished(outcome)
    alone = generate(*models, [image.task.spec])
    assert torch.equal(image.codes, alone.codes[0])
    assert torch.equal(image.entropies, alone.entropies[0])


def test_a_batch_gives_each_image_what_it_gets_alone(models: Models) -> None:
    engine = PlainEngine(*models, capacity_rows=16)
    outcomes = run(engine, TASKS)
    assert list(outcomes) == [task.key for task in TASKS]
    for outcome in outcomes.values():
        assert_as_if_alone(outcome, models)
    assert len({tuple(finished(outcome).codes.tolist()) for outcome in outcomes.values()}) == 5
    assert all(finished(outcome).decode_seconds > 0 for outcome in outcomes.values())


def test_rows_are_counted(models: Models) -> None:
    engine = PlainEngine(*models, capacity_rows=5)
    assert (engine.capacity_rows, engine.free_rows) == (5, 5)
    engine.add(TASKS[0])
    engine.add(TASKS[1])
    assert engine.free_rows == 2
    with pytest.raises(ValueError, match="here already"):
        engine.add(TASKS[1])
    engine.add(TASKS[2])
    with pytest.raises(ValueError, match="1 rows do not fit, 0 are free"):
        engine.add(TASKS[3])
    assert {outcome.task.key for outcome in engine.step()} == {task.key for task in TASKS[:3]}
    assert engine.free_rows == 5


def test_a_cancelled_task_is_not_run(models: Models) -> None:
    engine = PlainEngine(*models, capacity_rows=16)
    engine.add(TASKS[0])
    engine.add(TASKS[1])
    engine.cancel(TASKS[0].key)
    engine.cancel(("unknown", 0))
    assert engine.free_rows == 15
    (outcome,) = engine.step()
    assert outcome.task is TASKS[1]
    assert engine.step() == []


def test_every_position_is_observed(models: Models) -> None:
    steps: list[tuple[int, float]] = []
    engine = PlainEngine(*models, 16, lambda rows, seconds: steps.append((rows, seconds)))
    run(engine, TASKS)
    assert [rows for rows, _ in steps] == [8] * GRID**2
    assert all(seconds > 0 for _, seconds in steps)


def test_an_image_that_is_not_finite_fails_alone(models: Models) -> None:
    with torch.no_grad():
        models[0].cls_embedding.embedding_table.weight[3] = math.nan
    outcomes = run(PlainEngine(*models, 16), TASKS)
    bad = outcomes.pop(("job", 3))
    assert isinstance(bad, FailedImage)
    assert isinstance(bad.error, NonFiniteError)
    assert len(outcomes) == 4
    for outcome in outcomes.values():
        assert_as_if_alone(outcome, models)


def test_images_that_fail_later_and_one_by_one_leave_the_others_alone(models: Models) -> None:
    specs = [replace(SPECS[0], seed=seed) for seed in range(12)]
    drawn = [set(generate(*models, [spec]).clusters[0, :-1].tolist()) for spec in specs]
    poison = next(
        cluster for cluster in range(16) if 3 <= sum(cluster in seen for seen in drawn) <= 9
    )
    with torch.no_grad():
        models[0].tok_embeddings.weight[poison] = math.inf
    tasks = [ImageTask("job", i, spec) for i, spec in enumerate(specs)]
    engine = PlainEngine(*models, 64)
    outcomes = run(engine, tasks)
    assert len(outcomes) == 12
    for i, seen in enumerate(drawn):
        outcome = outcomes["job", i]
        if poison in seen:
            assert isinstance(outcome, FailedImage)
        else:
            assert_as_if_alone(outcome, models)
    assert engine.free_rows == 64


def test_after_an_exception_the_tasks_are_still_there(models: Models) -> None:
    engine = PlainEngine(*models, 16)
    engine.add(TASKS[0])
    engine.add(TASKS[1])
    models[0].train()
    with pytest.raises(ValueError, match="training mode"):
        engine.step()
    assert engine.free_rows == 13
    engine.cancel(TASKS[0].key)
    models[0].eval()
    (outcome,) = engine.step()
    assert_as_if_alone(outcome, models)
