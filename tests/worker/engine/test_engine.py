"""The engine against the plain loop on each image alone."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import masc_core.generation.batch
from masc_core.errors import InvalidFieldError, NonFiniteError, UnknownClassError
from masc_core.generation.batch import Batch
from masc_core.generation.generate import Generated, generate
from masc_core.models.gpt import GPT
from masc_core.sampling.cfg_schedule import CFG_SCHEDULES
from masc_core.sampling.in_cluster import CodeSampler
from masc_core.sampling.params import SamplingParams
from tests.tiny_bundle import GRID, tiny_parts
from worker.engine.engine import Engine
from worker.engine.request import (
    EngineOutput,
    FailedImage,
    FinishedImage,
    ImageTask,
    PartialImage,
    TaskKey,
)

Models = tuple[GPT, CodeSampler]

LENGTH = GRID**2
PARAMS = [
    SamplingParams(class_id=0, cfg_scale=2.0, seed=1),
    SamplingParams(class_id=1, cfg_scale=1.0, seed=2),
    SamplingParams(class_id=2, cfg_scale=7.5, seed=2**63 - 1, temperature=0.7, top_k=3),
    SamplingParams(class_id=3, cfg_scale=1.0, seed=0, top_p=0.5, decoding="frequency"),
    SamplingParams(class_id=4, cfg_scale=1.5, seed=1, decoding="refine"),
]
TASKS = [ImageTask("job", i, params) for i, params in enumerate(PARAMS)]


@pytest.fixture
def models() -> Models:
    parts = tiny_parts(refiner=True, partitions=(5,))
    (partition,) = parts.partitions
    return parts.transformer, CodeSampler(
        parts.prior, parts.counts, refiner=parts.refiner, coarse_partition=partition
    )


class Alone:
    """What images become alone in the plain loop, remembered; entropies may differ by so much."""

    def __init__(self, models: Models, tolerance: float = 0.0) -> None:
        self.models, self.tolerance = models, tolerance
        self.made: dict[SamplingParams, Generated] = {}

    def check(self, image: EngineOutput) -> None:
        assert isinstance(image, FinishedImage), image
        params = image.task.params
        if params not in self.made:
            self.made[params] = generate(*self.models, [params])
        assert torch.equal(image.codes, self.made[params].codes[0])
        for name in ("entropies", "cluster_entropies"):
            torch.testing.assert_close(
                getattr(image, name),
                getattr(self.made[params], name)[0],
                rtol=self.tolerance,
                atol=self.tolerance,
            )


def run(engine: Engine, tasks: Sequence[ImageTask] = ()) -> dict[TaskKey, EngineOutput]:
    """Outcomes of the tasks, and of what was in the engine before."""
    for task in tasks:
        engine.add(task)
    outcomes: dict[TaskKey, EngineOutput] = {}
    while engine.tasks:
        outcomes |= {outcome.task.key: outcome for outcome in engine.step()}
    return outcomes


def test_a_batch_gives_each_image_what_it_gets_alone(models: Models) -> None:
    alone = Alone(models)
    outcomes = run(Engine(*models, capacity_rows=16), TASKS)
    assert list(outcomes) == [task.key for task in TASKS]
    for outcome in outcomes.values():
        alone.check(outcome)
        assert isinstance(outcome, FinishedImage)
        assert outcome.prefill_seconds > 0
        assert outcome.decode_seconds > outcome.code_seconds > 0
    assert len({tuple(made.codes[0].tolist()) for made in alone.made.values()}) == len(PARAMS)


CAPACITIES = (2, 3, 5, 8, 16, 33, 64)


def some_params(rng: random.Random) -> list[SamplingParams]:
    """Few enough that every one is met in many schedules."""
    return [
        SamplingParams(
            class_id=rng.randrange(5),
            cfg_scale=rng.choice([1.0, 1.0, 1.5, 4.0]),
            seed=rng.randrange(2**63),
            temperature=rng.choice([1.0, 0.8, 1.3]),
            top_k=rng.choice([0, 0, 3]),
            top_p=rng.choice([1.0, 1.0, 0.7]),
            decoding=rng.choice(["uniform", "frequency", "refine"]),
            cfg_schedule=CFG_SCHEDULES[i % len(CFG_SCHEDULES)],
            cluster_top_k=rng.choice([0, 0, 2]),
            cluster_top_p=rng.choice([1.0, 1.0, 0.6]),
        )
        for i in range(24)
    ]


def being_read(engine: Engine) -> list[ImageTask]:
    """Tasks that have no rows any more, and no outcome yet."""
    drawing = {running.task.key for running in engine._by_slot.values()}
    return [r.task for r in engine._running.values() if r.task.key not in drawing]


def follow(
    engine: Engine, params_list: Sequence[SamplingParams], rng: random.Random
) -> list[EngineOutput]:
    """A random schedule: arrivals in bursts and one by one, cancellations, until all is done."""
    burst, patience = rng.choice([0.1, 0.5, 1.0]), rng.choice([0.0, 0.02])
    waiting = [ImageTask("job", i, rng.choice(params_list)) for i in range(rng.randint(1, 40))]
    added: dict[TaskKey, ImageTask] = {}
    outcomes: list[EngineOutput] = []
    cancelled: set[TaskKey] = set()
    while waiting or engine.tasks:
        while waiting and waiting[0].batch_rows <= engine.free_rows and rng.random() < burst:
            task = waiting.pop(0)
            engine.add(task)
            added[task.key] = task
        here = engine.tasks
        if here and rng.random() < patience:
            before, victim = engine.free_rows, rng.choice(here)
            is_drawn = victim in being_read(engine)
            engine.cancel(victim.key)
            assert engine.free_rows == before + (0 if is_drawn else victim.batch_rows)
            cancelled.add(victim.key)
        outcomes += engine.step()
    assert {outcome.task.key for outcome in outcomes} == set(added) - cancelled
    assert len(outcomes) == len(added) - len(cancelled)
    assert engine.free_rows == engine.capacity_rows
    return outcomes


@pytest.mark.parametrize(("dtype", "num_threads"), [(torch.float32, 3), (torch.bfloat16, 1)])
def test_random_schedules_give_every_image_what_it_gets_alone(
    models: Models, dtype: torch.dtype, num_threads: int
) -> None:
    rng = random.Random(f"{dtype} {num_threads}")
    alone, params_list = Alone((models[0].to(dtype), models[1])), some_params(rng)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for capacity in CAPACITIES:
            engine = Engine(*models, capacity_rows=capacity)
            for outcome in follow(engine, params_list, rng):
                alone.check(outcome)
    finally:
        torch.set_num_threads(before)


def test_rows_are_counted(models: Models) -> None:
    engine = Engine(*models, capacity_rows=5)
    assert (engine.capacity_rows, engine.free_rows) == (5, 5)
    engine.add(TASKS[0])
    engine.add(TASKS[1])
    assert engine.free_rows == 2
    with pytest.raises(ValueError, match="here already"):
        engine.add(TASKS[1])
    engine.step()
    with pytest.raises(ValueError, match="here already"):
        engine.add(TASKS[1])
    engine.add(TASKS[2])
    with pytest.raises(ValueError, match="1 rows do not fit, 0 are free"):
        engine.add(TASKS[3])
    assert set(run(engine)) == {task.key for task in TASKS[:3]}
    assert engine.free_rows == 5


def test_a_task_that_the_model_cannot_do_is_refused_at_once(models: Models) -> None:
    engine = Engine(*models, capacity_rows=16)
    with pytest.raises(UnknownClassError):
        engine.add(replace(TASKS[0], params=replace(PARAMS[0], class_id=99)))
    flat = Engine(models[0], CodeSampler(tiny_parts().prior), capacity_rows=16)
    for params in (replace(PARAMS[1], cluster_top_k=1), replace(PARAMS[1], cluster_top_p=0.5)):
        with pytest.raises(InvalidFieldError, match="the model has no partition"):
            flat.add(replace(TASKS[1], params=params))
    best: Any = "best"
    with pytest.raises(InvalidFieldError, match="decoding"):
        engine.add(replace(TASKS[0], params=replace(PARAMS[0], decoding=best)))
    for row in (0, GRID):
        with pytest.raises(ValueError, match="preview"):
            engine.add(replace(TASKS[0], preview_rows=(row,)))
    assert engine.free_rows == 16
    assert engine.step() == ()


def test_images_join_and_leave_one_by_one(models: Models) -> None:
    alone, engine = Alone(models), Engine(*models, capacity_rows=16)
    left: list[tuple[int, int]] = []
    for step in range(2 * LENGTH):
        if step % 3 == 0 and step < 3 * len(TASKS):
            engine.add(TASKS[step // 3])
        for outcome in engine.step():
            alone.check(outcome)
            left.append((step, outcome.task.index))
    assert left == [(3 * i + LENGTH - 1, i) for i in range(len(TASKS))]


def test_a_cancelled_task_is_not_run(models: Models) -> None:
    alone, engine = Alone(models), Engine(*models, capacity_rows=16)
    engine.add(TASKS[0])
    engine.cancel(TASKS[0].key)
    engine.cancel(("unknown", 0))
    assert engine.free_rows == 16
    for task in TASKS[:3]:
        engine.add(task)
    engine.step()
    engine.cancel(TASKS[1].key)
    engine.cancel(TASKS[1].key)
    assert engine.free_rows == 12
    engine.add(TASKS[3])  # takes the slot that is free
    engine.add(TASKS[1])  # comes back from the start
    outcomes = run(engine)
    assert set(outcomes) == {("job", i) for i in range(4)}
    for outcome in outcomes.values():
        alone.check(outcome)


def test_what_a_broken_step_left_of_a_cancelled_task_is_not_handed_out(models: Models) -> None:
    engine = Engine(*models, capacity_rows=16)
    engine.add(TASKS[0])
    engine.step()
    engine._outputs.append(FailedImage(TASKS[0], NonFiniteError("a NaN")))
    engine.cancel(TASKS[0].key)
    assert not engine.step()


def test_previews_are_what_is_drawn_so_far(models: Models) -> None:
    engine = Engine(*models, capacity_rows=16)
    engine.add(replace(TASKS[0], preview_rows=(1, GRID - 1)))
    engine.add(TASKS[1])
    outcomes = [(step, outcome) for step in range(1, LENGTH + 1) for outcome in engine.step()]
    *partial, finished, _ = [outcome for _, outcome in outcomes]
    assert isinstance(finished, FinishedImage)
    for preview, rows in zip(partial, (1, GRID - 1), strict=True):
        assert isinstance(preview, PartialImage)
        assert preview.grid_rows == rows
        assert torch.equal(preview.codes, finished.codes[: rows * GRID])
    assert [step for step, _ in outcomes] == [GRID, LENGTH - GRID, LENGTH, LENGTH]


def test_every_position_is_observed(models: Models) -> None:
    steps: list[tuple[int, float]] = []
    run(Engine(*models, 16, lambda rows, seconds: steps.append((rows, seconds))), TASKS)
    assert [rows for rows, _ in steps] == [8] * LENGTH
    assert all(seconds > 0 for _, seconds in steps)


def test_an_image_that_is_not_finite_fails_alone(models: Models) -> None:
    with torch.no_grad():
        models[0].cls_embedding.embedding_table.weight[3] = math.nan
    alone, engine = Alone(models), Engine(*models, 16)
    for task in TASKS:
        engine.add(task)
    (bad,) = engine.step()
    assert isinstance(bad, FailedImage)
    assert bad.task is TASKS[3]
    assert isinstance(bad.error, NonFiniteError)
    assert engine.free_rows == 9
    outcomes = run(engine)
    assert len(outcomes) == 4
    for outcome in outcomes.values():
        alone.check(outcome)


def test_images_that_fail_later_and_one_by_one_leave_the_others_alone(models: Models) -> None:
    params_list = [replace(PARAMS[0], seed=seed) for seed in range(12)]
    drawn = [set(generate(*models, [params]).clusters[0, :-1].tolist()) for params in params_list]
    poison = next(
        cluster for cluster in range(16) if 3 <= sum(cluster in seen for seen in drawn) <= 9
    )
    with torch.no_grad():
        models[0].tok_embeddings.weight[poison] = math.inf
    alone, engine = Alone(models), Engine(*models, 64)
    outcomes = run(engine, [ImageTask("job", i, params) for i, params in enumerate(params_list)])
    assert len(outcomes) == 12
    for i, seen in enumerate(drawn):
        if poison in seen:
            assert isinstance(outcomes["job", i], FailedImage)
        else:
            alone.check(outcomes["job", i])
    assert engine.free_rows == 64


@pytest.mark.parametrize("where", ["model", "code_sampler"])
def test_after_an_exception_the_images_go_on_where_they_were(
    models: Models, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    alone, engine = Alone(models), Engine(*models, 16)
    engine.add(TASKS[0])
    engine.add(TASKS[1])
    engine.step()
    with monkeypatch.context() as patch:
        if where == "model":
            patch.setattr(models[0].layers[-1], "step", fail)
        else:
            patch.setattr(models[1], "sample_code", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.step()
    assert engine.free_rows == 13
    engine.cancel(TASKS[0].key)
    ((key, outcome),) = run(engine).items()
    assert key == TASKS[1].key
    alone.check(outcome)


def test_a_model_in_training_is_refused(models: Models) -> None:
    with pytest.raises(ValueError, match="training mode"):
        Engine(models[0].train(), models[1], 16)


def test_an_image_whose_reading_fails_stays_due(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    alone, engine = Alone(models), Engine(*models, 16)
    for step in range(LENGTH):
        if step < 2:
            engine.add(TASKS[step])
        with monkeypatch.context() as patch:
            patch.setattr(Batch, "read", fail)
            if step < LENGTH - 1:
                assert engine.step() == ()
                continue
            for _ in range(3):
                with pytest.raises(RuntimeError, match="out of memory"):
                    engine.step()
    assert engine.tasks == TASKS[:2]
    engine.add(TASKS[2])
    (first,) = engine.step()
    (second,) = engine.step()
    (third,) = run(engine).values()
    for outcome, task in zip((first, second, third), TASKS, strict=False):
        assert outcome.task is task
        alone.check(outcome)
    assert engine.free_rows == 16


def test_an_observer_that_fails_costs_no_outcome(models: Models) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no metrics")

    alone, engine = Alone(models), Engine(*models, 16, fail)
    engine.add(TASKS[0])
    for _ in range(LENGTH):
        with pytest.raises(RuntimeError, match="no metrics"):
            engine.step()
    (outcome,) = engine.step()
    alone.check(outcome)


@pytest.mark.parametrize("where", ["allocate", "pack_params"])
def test_after_a_join_that_failed_all_are_where_they_were(
    models: Models, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    alone, engine = Alone(models), Engine(*models, 16)
    engine.add(TASKS[0])
    engine.step()
    engine.add(TASKS[1])
    engine.add(TASKS[2])
    with monkeypatch.context() as patch:
        patch.setattr(masc_core.generation.batch, where, fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.step()
    assert engine.tasks == TASKS[:3]
    assert engine.free_rows == 11
    engine.cancel(TASKS[1].key)
    outcomes = run(engine)
    assert list(outcomes) == [TASKS[0].key, TASKS[2].key]
    for outcome in outcomes.values():
        alone.check(outcome)


def held() -> tuple[int, int]:
    """Objects that are alive, and KiB of memory, without what the allocator keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return len(gc.get_objects()), pages * os.sysconf("SC_PAGE_SIZE") >> 10


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux and glibc for its memory")
@pytest.mark.slow
def test_twenty_thousand_requests_leave_nothing_behind(models: Models) -> None:
    rng = random.Random(0)
    alone, engine = Alone(models), Engine(*models, capacity_rows=64)
    params_list = some_params(rng)
    num_done, objects, memory = 0, 0, 0
    for index in range(20_000):
        task = ImageTask("job", index, rng.choice(params_list))
        while task.batch_rows > engine.free_rows:
            for outcome in engine.step():
                alone.check(outcome)
                num_done += 1
        engine.add(task)
        if (
            index == 12_500
        ):  # all numbers of rows have been met, for each of which kernels keep some
            num_done += len(run(engine))
            objects, memory = held()
        victims = engine.tasks if rng.random() < 0.05 else []
        if victims:
            engine.cancel(rng.choice(victims).key)
            num_done += 1
    num_done += len(run(engine))
    assert num_done == 20_000
    assert engine.free_rows == 64
    objects_now, memory_now = held()
    assert objects_now < objects + 1_000
    assert memory_now - memory < 4 << 10  # half a KiB a request
