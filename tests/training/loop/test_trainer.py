from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from masc_core.errors import ConfigError, DivergedError
from tests.clock import Clock
from training.config import LoopConfig
from training.loop.batches import epoch_order
from training.loop.checkpoint import latest_checkpoint, latest_step
from training.loop.distributed import Ranks
from training.loop.run_dir import Run
from training.loop.task import Indices, ItemRandomBits, TrainedModule, TrainingTask
from training.loop.trainer import (
    fit,
    learning_rate,
    set_learning_rate,
    trains_in_bfloat16,
    wsd_share,
)

ITEMS = 22


def config(out: Path, **changes: object) -> LoopConfig:
    values = {"epochs": 3, "batch_size": 4, "lr": 0.05, "log_every": 1, "checkpoint_every": 2}
    return LoopConfig.model_validate({"out": out, **values, **changes})


def regression(
    kept: list[float], after_step: Callable[[int], None] = lambda _: None, scale: float = 1.0
) -> TrainingTask:
    """A small regression with dropout, so that the random state matters."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(ITEMS, 5, generator=generator)
    y = x.sum(dim=1, keepdim=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    class Error(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: Tensor, outputs: Tensor) -> dict[str, Tensor]:
            return {"loss": F.mse_loss(self.model(inputs), outputs) * scale}

    def batch(indices: Indices, random_bits: ItemRandomBits) -> tuple[Tensor, Tensor]:
        jitter = torch.from_numpy(random_bits[:, :1] % np.uint64(7)).float() / 100
        return x[indices] + jitter, y[indices]

    def validate() -> dict[str, float]:
        return {"objective": float(F.mse_loss(model(x), y))}

    def save_best(values: dict[str, float]) -> None:
        kept.append(values["objective"])

    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    trained = TrainedModule(model, Error(), optimizer)
    return TrainingTask((trained,), ITEMS, batch, validate, save_best, after_step)


def weights(task: TrainingTask) -> dict[str, Tensor]:
    return dict(task.trained_modules[0].model.state_dict())


def history(folder: Path) -> list[tuple[str, int, float]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(row["kind"], row["step"], row.get("loss", row.get("objective"))) for row in rows]


def run_fit(folder: Path, task: TrainingTask) -> dict[str, Tensor]:
    with Run(folder, config(folder)) as run:
        fit(run, config(folder), task)
    return weights(task)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """Folder and weights of a run that nothing interrupts; 15 steps, 3 epochs."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run_fit(folder, regression([]))


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def power_cut() -> None:
    raise RuntimeError("power cut")


@pytest.mark.parametrize(
    ("end", "error", "at"),
    [
        *((sigterm, KeyboardInterrupt, step) for step in (1, 2, 5, 7, 15)),
        *((power_cut, RuntimeError, step) for step in (1, 4, 5, 6, 11)),
    ],
)
def test_a_run_that_was_interrupted_and_goes_on_is_the_same_run(
    whole: tuple[Path, dict[str, Tensor]],
    tmp_path: Path,
    end: Callable[[], None],
    error: type[BaseException],
    at: int,
) -> None:
    def after_step(step: int) -> None:
        if step == at:
            end()

    with pytest.raises(error):
        run_fit(tmp_path, regression([], after_step))
    actual, (folder, expected) = run_fit(tmp_path, regression([])), whole
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    assert history(tmp_path) == history(folder)
    assert latest_step(latest_checkpoint(tmp_path)) == 15


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    run_fit(tmp_path, regression([]))
    before = history(tmp_path)
    kept: list[float] = []
    run_fit(tmp_path, regression(kept))
    assert history(tmp_path) == before
    assert not kept


def test_keeps_only_what_improved(tmp_path: Path) -> None:
    kept: list[float] = []
    with Run(tmp_path, config(tmp_path, epochs=20)) as run:
        best = fit(run, config(tmp_path, epochs=20), regression(kept)).best
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == best


def test_batches_larger_than_the_data_are_refused(tmp_path: Path) -> None:
    with Run(tmp_path, config(tmp_path)) as run, pytest.raises(ConfigError, match="batch_size"):
        fit(run, config(tmp_path, batch_size=23), regression([]))


def test_a_batch_that_the_ranks_cannot_share_is_refused(tmp_path: Path) -> None:
    odd, second = config(tmp_path, batch_size=7), Ranks(torch.device("cpu"), 1, 2)
    message = "batch_size: 7 cannot be shared by 2 ranks"
    with Run(tmp_path, odd, ranks=second) as run, pytest.raises(ConfigError, match=message):
        fit(run, odd, regression([]))


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path: Path) -> None:
    with Run(tmp_path, config(tmp_path)) as run:
        with pytest.raises(DivergedError, match="step 1"):
            fit(run, config(tmp_path), regression([], scale=float("nan")))
        assert latest_checkpoint(run.folder) is None


def test_orders_differ_by_seed_and_epoch_and_by_nothing_else() -> None:
    uncached = epoch_order.__wrapped__
    assert np.array_equal(epoch_order(50, 1, 2), uncached(50, 1, 2))
    assert not np.array_equal(epoch_order(50, 1, 2), epoch_order(50, 1, 3))
    assert not np.array_equal(epoch_order(50, 1, 2), epoch_order(50, 2, 2))
    assert sorted(epoch_order(50, 0, 0)) == list(range(50))


def test_a_loss_that_diverges_between_log_lines_is_not_validated_nor_saved(tmp_path: Path) -> None:
    rare = config(tmp_path, log_every=1000, checkpoint_every=1000)
    kept: list[float] = []
    with Run(tmp_path, rare) as run:
        with pytest.raises(DivergedError, match="step 5"):
            fit(run, rare, regression(kept, scale=float("inf")))
        assert latest_checkpoint(run.folder) is None
    assert not kept


def test_a_gradient_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    class Sharp(nn.Module):
        """Loss 0, whose gradient is 0 times infinity."""

        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(1, 1)

        def forward(self, inputs: Tensor, outputs: Tensor) -> dict[str, Tensor]:
            return {"loss": (self.model.weight * 0).abs().sqrt().sum()}

    task, sharp = regression([]), Sharp()
    trained = TrainedModule(sharp.model, sharp, torch.optim.AdamW(sharp.parameters()))
    often = config(tmp_path, checkpoint_every=1)
    with Run(tmp_path, often) as run:
        with pytest.raises(DivergedError, match="gradient is not finite at step 1"):
            fit(run, often, replace(task, trained_modules=(trained,)))
        assert latest_checkpoint(run.folder) is None


def test_a_validation_that_is_not_finite_is_no_result(tmp_path: Path) -> None:
    task = replace(regression([]), validate=lambda: {"objective": float("nan")})
    with Run(tmp_path, config(tmp_path)) as run, pytest.raises(DivergedError, match="validation"):
        fit(run, config(tmp_path), task)


class Scale(nn.Module):
    """One weight, and ``loss = sign * weight * mean(x)`` beside what it saw."""

    def __init__(self, name: str, sign: float, seen: list[tuple[str, int]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.name, self.sign, self.seen = name, sign, seen

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.seen.append((self.name, len(x)))
        loss = self.sign * self.weight * x.mean()
        return {"loss": loss, self.name: loss.detach() + x.mean()}


def two_modules(
    folder: Path, second_sign: float, grad_clip: float
) -> tuple[list[Scale], list[tuple[str, int]]]:
    """Two modules after one step of two micro-batches, [0, 1, 2, 3] shuffled, and what they saw."""
    seen: list[tuple[str, int]] = []
    models = [Scale("first", 1.0, seen), Scale("second", second_sign, seen)]
    trained_modules = tuple(
        TrainedModule(model, model, torch.optim.SGD(model.parameters(), lr=1.0)) for model in models
    )

    def batch(indices: Indices, random_bits: ItemRandomBits) -> tuple[Tensor, ...]:
        return (torch.from_numpy(indices).double(),)

    task = TrainingTask(trained_modules, 4, batch, lambda: {"objective": 0.0}, lambda _: None)
    once = config(folder, epochs=1, micro_batch=2, lr=0.5, grad_clip=grad_clip)
    with Run(folder, once) as run:
        fit(run, once, task)
    return models, seen


def test_every_module_sees_every_micro_batch_before_all_step(tmp_path: Path) -> None:
    models, seen = two_modules(tmp_path, -1.0, grad_clip=100)
    assert seen == [("first", 2), ("second", 2)] * 2
    assert [model.weight.item() for model in models] == [-0.5 * 1.5, 0.5 * 1.5]
    row = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert (row["loss"], row["first"], row["second"]) == (0.0, 1.5, 1.5)


def test_gradients_are_clipped_for_each_module_after_all_micro_batches(tmp_path: Path) -> None:
    models, _ = two_modules(tmp_path, -0.1, grad_clip=0.3)
    # The mean gradients are 1.5, which is clipped, and -0.15, which is not.
    assert [m.weight.item() for m in models] == pytest.approx([-0.5 * 0.3, 0.5 * 0.15], rel=1e-5)


def test_overwritten_rows_start_their_average_and_moments_anew(tmp_path: Path) -> None:
    task = regression([])
    model, optimizer = task.trained_modules[0].model, task.trained_modules[0].optimizer
    weight = next(iter(model.parameters()))
    rows = torch.arange(len(weight)) < 3

    def restart_rows(step: int) -> list[tuple[Tensor, Tensor]]:
        if step != 15:
            return []
        with torch.no_grad():
            weight[rows] = 7.0
        return [(weight, rows)]

    averaged = config(tmp_path, ema_decay=0.9)
    with Run(tmp_path, averaged) as run:
        fit(run, averaged, replace(task, restart_rows=restart_rows))
    path = latest_checkpoint(tmp_path)
    assert path is not None
    (file,) = path.glob("*.safetensors")
    average = load_file(file)["average.0.weight"]
    assert (average == 7.0).all(dim=1).tolist() == rows.tolist()
    for key in ("exp_avg", "exp_avg_sq"):
        assert (optimizer.state[weight][key] == 0).all(dim=1).tolist() == rows.tolist()
    assert optimizer.state[weight]["step"] == 15


def without_dropout(kept: list[float]) -> TrainingTask:
    task = regression(kept)
    for module in task.trained_modules[0].model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return task


def test_micro_batches_make_the_same_step_as_a_whole_batch(tmp_path: Path) -> None:
    tasks = {0: without_dropout([]), 1: without_dropout([]), 2: without_dropout([])}
    for micro_batch, task in tasks.items():
        divided = config(tmp_path / str(micro_batch), micro_batch=micro_batch)
        with Run(divided.out, divided) as run:
            fit(run, divided, task)
    for micro_batch in (1, 2):
        torch.testing.assert_close(weights(tasks[micro_batch]), weights(tasks[0]))
        for actual, expected in zip(
            history(tmp_path / str(micro_batch)), history(tmp_path / "0"), strict=True
        ):
            assert actual[:2] == expected[:2]
            assert actual[2] == pytest.approx(expected[2], rel=1e-4)


def test_micro_batches_that_do_not_divide_the_batch_are_refused(tmp_path: Path) -> None:
    uneven = config(tmp_path, micro_batch=3)
    with Run(tmp_path, uneven) as run, pytest.raises(ConfigError, match="micro_batch: 3 does not"):
        fit(run, uneven, regression([]))


def test_a_micro_batch_beyond_the_batch_is_the_batch(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    model = Scale("only", 1.0, seen)
    trained = TrainedModule(model, model, torch.optim.SGD(model.parameters(), lr=1.0))
    task = TrainingTask(
        (trained,),
        8,
        lambda i, _: (torch.from_numpy(i).double(),),
        lambda: {"objective": 0.0},
        lambda _: None,
    )
    large = config(tmp_path, epochs=1, micro_batch=64)
    with Run(tmp_path, large) as run:
        fit(run, large, task)
    assert seen == [("only", 4)] * 2


def test_too_little_memory_names_the_key(tmp_path: Path) -> None:
    def fill(step: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    plain = config(tmp_path, micro_batch=2)
    with Run(tmp_path, plain) as run, pytest.raises(ConfigError, match="micro_batch: 2 items at"):
        fit(run, plain, regression([], fill))


def test_averaged_weights_are_validated_and_kept_but_not_trained_on(
    whole: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    task = regression([])
    model = task.trained_modules[0].model
    at: dict[str, list[Tensor]] = {"step": [], "validate": [], "keep": [], "epoch": []}

    def note(name: str) -> None:
        at[name].append(next(model.parameters()).detach().clone())

    def validate() -> dict[str, float]:
        note("validate")
        assert not model.training
        return {"objective": -float(len(at["validate"]))}

    watched = replace(
        task,
        validate=validate,
        save_best=lambda _: note("keep"),
        after_step=lambda _: note("step"),
        after_epoch=lambda *_: note("epoch"),
    )
    averaged = config(tmp_path / "averaged", ema_decay=0.9)
    with Run(averaged.out, averaged) as run:
        fit(run, averaged, watched)
    assert all(torch.equal(whole[1][name], value) for name, value in weights(task).items())
    expected = next(regression([]).trained_modules[0].model.parameters()).detach().clone()
    for step, value in enumerate(at["step"], 1):
        expected.lerp_(value, 0.1)
        if step % 5 == 0:
            for name in ("validate", "keep", "epoch"):
                torch.testing.assert_close(at[name][step // 5 - 1], expected)
    assert [len(values) for values in at.values()] == [15, 3, 3, 3]


def test_what_is_done_with_the_weights_may_fail_and_leaves_no_thread(tmp_path: Path) -> None:
    def save_best(_: dict[str, float]) -> None:
        raise OSError("no space left")

    with Run(tmp_path, config(tmp_path)) as run, pytest.raises(OSError, match="no space left"):
        fit(run, config(tmp_path), replace(regression([]), save_best=save_best))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.name == "0000004"


def test_the_pace_is_a_mean_over_the_interval_without_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)

    def after_step(step: int) -> None:
        clock.now += 0.01 * step

    def validate() -> dict[str, float]:
        clock.now += 50.0
        return {"objective": 0.0}

    slow = replace(
        regression([], after_step), validate=validate, extra_metrics=lambda rate: {"half": rate / 2}
    )
    spaced = config(tmp_path, log_every=3, checkpoint_every=1000)
    with Run(tmp_path, spaced) as run:
        fit(run, spaced, slow)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    paces = {row["step"]: row["items_per_second"] for row in rows if row["kind"] == "train"}
    assert list(paces) == [3, 6, 9, 12, 15]
    timed = [range(1, 4), range(6, 7), range(7, 10), range(11, 13), range(13, 16)]
    expected = [4 * len(steps) / (0.01 * sum(steps)) for steps in timed]  # since step 5, since 10
    assert list(paces.values()) == pytest.approx(expected)
    assert all(row["half"] == paces[row["step"]] / 2 for row in rows if row["kind"] == "train")


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


def test_wsd_is_gigatoks_rate_to_the_step() -> None:
    total, warmup = 1_500_000, 5_000

    def upstream(s: int) -> float:  # after step s, for the next one
        if s < warmup:
            return 1e-4 * (s / warmup + (1 - s / warmup) / 100)
        if s < 0.8 * total:
            return 1e-4
        return 1e-4 * (1 - math.sqrt((s - 0.8 * total) / (0.2 * total)))

    def wsd(s: int) -> float:
        return learning_rate(
            s, total_steps=total, peak=1e-4, min_ratio=0.1, warmup_steps=warmup, schedule="wsd"
        )

    assert wsd(0) == 1e-4
    for s in (1, 2, 2_500, 4_999, 5_000, 5_001, 1_199_999, 1_200_000, 1_200_001, 1_350_000):
        assert wsd(s) == pytest.approx(upstream(s), rel=1e-9)
    assert wsd(1) == pytest.approx(1.0198e-6)
    assert wsd(1_350_000) == pytest.approx(1e-4 * (1 - math.sqrt(0.5)))
    assert 0 < wsd(total - 1) < 1e-9
    assert wsd(total) == 0


def test_wsd_of_a_run_of_few_steps() -> None:
    rates = [wsd_share(step, 10, 3) for step in range(11)]
    third = [s / 3 + (1 - s / 3) / 100 for s in (1, 2)]
    expected = [1, *third, 1, 1, 1, 1, 1, 1, 1 - math.sqrt(0.5), 0]
    assert rates == pytest.approx(expected)


def test_every_group_gets_the_rate() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 9.0} for _ in range(2)]
    optimizer = torch.optim.AdamW(groups)
    set_learning_rate(optimizer, 0.25)
    assert [g["lr"] for g in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_auto_is_bfloat16_where_the_processor_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, *, has_bfloat16: bool
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": has_bfloat16})
    cpu = torch.device("cpu")
    chosen = {
        precision: trains_in_bfloat16(LoopConfig(out=Path("run"), precision=precision), cpu)
        for precision in ("auto", "bfloat16", "float32")
    }
    assert chosen == {"auto": has_bfloat16, "bfloat16": True, "float32": False}
