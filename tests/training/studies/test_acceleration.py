from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from masc_core.errors import ArtifactError, ConfigError
from training.studies.acceleration import acceleration, read_curve

BASE = [(100.0, 9.0), (200.0, 6.0), (300.0, 5.0)]


def test_interpolates_between_evaluations() -> None:
    found = acceleration(BASE, [(100, 8.0), (200, 4.0), (300, 3.0)])
    assert found.epoch == pytest.approx(175)
    assert found.saved == pytest.approx(125 / 300)
    assert not found.extrapolated


def test_reached_at_once_is_reached_at_the_first_evaluation() -> None:
    assert acceleration(BASE, [(50, 4.0)]).epoch == 50


def test_the_baseline_saves_nothing_against_itself() -> None:
    assert acceleration(BASE, BASE).saved == 0


def test_not_reached_is_not_a_number() -> None:
    found = acceleration(BASE, [(100, 8.0), (300, 6.0)])
    assert found.epoch is found.saved is None


def test_extrapolates_only_when_asked_and_only_downwards() -> None:
    found = acceleration(BASE, [(100, 8.0), (300, 6.0)], extrapolate=True)
    assert found.epoch == pytest.approx(400)
    assert found.saved == pytest.approx(-1 / 3)
    assert found.extrapolated
    assert acceleration(BASE, [(100, 6.0), (300, 8.0)], extrapolate=True).epoch is None
    assert acceleration(BASE, [(100, 6.0)], extrapolate=True).epoch is None


def test_a_metric_that_rises_again_was_reached_nevertheless() -> None:
    assert acceleration(BASE, [(100, 6.0), (200, 4.0), (300, 7.0)]).epoch == pytest.approx(150)


def test_a_baseline_has_epochs_to_save() -> None:
    with pytest.raises(ConfigError, match="before its first epoch"):
        acceleration([(0.0, 9.0)], BASE)


def test_curves_come_from_logs(tmp_path: Path) -> None:
    rows = [
        {"kind": "train", "step": 3, "bits": 1},
        {"epoch": 2, "bits": 4},
        {"epoch": 1, "bits": 5},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_curve(tmp_path, "bits") == [(1, 5), (2, 4)]
    assert read_curve(tmp_path / "log.jsonl", "bits") == [(1, 5), (2, 4)]
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"epoch": 3, "bi')
    assert read_curve(tmp_path, "bits") == [(1, 5), (2, 4)]
    with pytest.raises(ConfigError, match="no 'fid' by epoch"):
        read_curve(tmp_path, "fid")
    others: dict[int, dict[str, Any]] = {
        1: {},
        2: {"transformer": {"path": "2"}},
        3: {"cfg_scale": 3.0},
    }
    for epoch, changes in others.items():
        place = tmp_path / "epochs" / f"{epoch:04d}" / "evaluation.json"
        place.parent.mkdir(parents=True)
        place.write_text(json.dumps({"fid": 9 - epoch, "settings": {"cfg_scale": 2.0} | changes}))
        if epoch == 2:
            assert read_curve(tmp_path, "fid") == [(1, 8), (2, 7)]
    with pytest.raises(ConfigError, match=r"epoch 3 was evaluated otherwise: cfg_scale was 2.0"):
        read_curve(tmp_path, "fid")
    (tmp_path / "log.jsonl").write_text("hello")
    with pytest.raises(ArtifactError, match="no log"):
        read_curve(tmp_path, "bits")
