from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc_core.errors import ConfigError, DivergedError
from training.config import LoopConfig
from training.loop import Stage, epoch_order, fit
from training.run import Run

ITEMS = 22


def config(out: Path, **changes: object) -> LoopConfig:
    values = {"epochs": 3, "batch_size": 4, "lr": 0.05, "log_every": 1, "checkpoint_every": 2}
    return LoopConfig.model_validate({"out": out, **values, **changes})


def regression(
    kept: list[float], after_step: Callable[[int], None] = lambda _: None, scale: float = 1.0
) -> Stage:
    """A small regression with dropout, so that the random state matters."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(ITEMS, 5, generator=generator)
    y = x.sum(dim=1, keepdim=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def loss(indices: Tensor) -> dict[str, Tensor]:
        return {"loss": F.mse_loss(model(x[indices]), y[indices]) * scale}

    def validate() -> dict[str, float]:
        return {"objective": float(F.mse_loss(model(x), y))}

    def keep(values: dict[str, float]) -> None:
        kept.append(values["objective"])

    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    return Stage(model, optimizer, ITEMS, loss, validate, keep, after_step)


def history(folder: Path) -> list[tuple[str, int, float]]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(row["kind"], row["step"], row.get("loss", row.get("objective"))) for row in rows]


def run_whole(folder: Path) -> dict[str, Tensor]:
    stage = regression([])
    with Run(folder, config(folder)) as run:
        assert fit(run, config(folder), stage).step == 15
    return stage.model.state_dict()


@pytest.mark.parametrize("stop_at", [1, 2, 5, 7, 15])
def test_a_run_stopped_by_a_signal_and_resumed_is_the_same_run(
    tmp_path: Path, stop_at: int
) -> None:
    expected = run_whole(tmp_path / "whole")
    folder = tmp_path / "stopped"

    def stop(step: int) -> None:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with Run(folder, config(folder)) as run, pytest.raises(KeyboardInterrupt):
        fit(run, config(folder), regression([], stop))
    stage = regression([])
    with Run(folder, config(folder)) as run:
        fit(run, config(folder), stage)
    assert all(torch.equal(v, expected[k]) for k, v in stage.model.state_dict().items())
    assert history(folder) == history(tmp_path / "whole")


@pytest.mark.parametrize("die_at", [1, 4, 5, 6, 11])
def test_a_run_that_died_repeats_from_its_checkpoint(tmp_path: Path, die_at: int) -> None:
    expected = run_whole(tmp_path / "whole")
    folder = tmp_path / "died"

    def die(step: int) -> None:
        if step == die_at:
            raise RuntimeError("power cut")

    with Run(folder, config(folder)) as run, pytest.raises(RuntimeError, match="power cut"):
        fit(run, config(folder), regression([], die))
    stage = regression([])
    with Run(folder, config(folder)) as run:
        fit(run, config(folder), stage)
    assert all(torch.equal(v, expected[k]) for k, v in stage.model.state_dict().items())
    assert history(folder) == history(tmp_path / "whole")


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    run_whole(tmp_path)
    before = history(tmp_path)
    kept: list[float] = []
    with Run(tmp_path, config(tmp_path)) as run:
        fit(run, config(tmp_path), regression(kept))
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


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path: Path) -> None:
    with Run(tmp_path, config(tmp_path)) as run:
        with pytest.raises(DivergedError, match="step 1"):
            fit(run, config(tmp_path), regression([], scale=float("nan")))
        assert not run.checkpoint.exists()


def test_orders_differ_by_seed_and_epoch_and_by_nothing_else() -> None:
    assert torch.equal(epoch_order(50, 1, 2), epoch_order(50, 1, 2))
    assert not torch.equal(epoch_order(50, 1, 2), epoch_order(50, 1, 3))
    assert not torch.equal(epoch_order(50, 1, 2), epoch_order(50, 2, 2))
    assert epoch_order(50, 0, 0).sort().values.tolist() == list(range(50))


def test_a_loss_that_diverges_between_log_lines_is_not_validated_nor_saved(tmp_path: Path) -> None:
    rare = config(tmp_path, log_every=1000, checkpoint_every=1000)
    kept: list[float] = []
    with Run(tmp_path, rare) as run:
        with pytest.raises(DivergedError, match="step 5"):
            fit(run, rare, regression(kept, scale=float("inf")))
        assert not run.checkpoint.exists()
    assert not kept


def test_a_validation_that_is_not_finite_is_no_result(tmp_path: Path) -> None:
    stage = replace(regression([]), validate=lambda: {"objective": float("nan")})
    with Run(tmp_path, config(tmp_path)) as run, pytest.raises(DivergedError, match="validation"):
        fit(run, config(tmp_path), stage)
