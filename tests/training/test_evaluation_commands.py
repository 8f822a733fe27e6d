from __future__ import annotations

import json
from pathlib import Path

import typer
from typer.testing import CliRunner

from tests.tiny_bundle import save_tiny_bundle
from training.evaluation_commands import compare_runs, evaluate


def run(command: object, *arguments: object) -> str:
    app = typer.Typer()
    app.command()(command)  # type: ignore[type-var]
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def log(folder: Path, *values: float) -> Path:
    folder.mkdir()
    rows = [json.dumps({"epoch": epoch, "fid": fid}) for epoch, fid in enumerate(values, 1)]
    (folder / "log.jsonl").write_text("\n".join(rows))
    return folder


def test_the_figures_are_printed_without_what_is_long(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path)
    options = ("--models", tmp_path, "--images-per-class", 1, "--decoding", "uniform", "--seed", 3)
    figures = json.loads(run(evaluate, "tiny", *options))
    assert figures["images"] == 5
    assert figures["settings"]["model"] == "tiny"
    assert (figures["settings"]["decoding"], figures["settings"]["first_seed"]) == ("uniform", 3)
    assert not {"curves", "definitions"} & figures.keys()


def test_runs_are_compared_with_a_baseline(tmp_path: Path) -> None:
    base, fast = log(tmp_path / "base", 9, 6, 5, 4), log(tmp_path / "fast", 6, 4, 3)
    slow = log(tmp_path / "slow", 9, 8, 7)
    said = run(compare_runs, base, fast, slow, "--metric", "fid").splitlines()
    assert "50.0% of the epochs saved, at epoch 2.00" in said[0]
    assert "not reached" in said[1]
    said = run(compare_runs, base, slow, "--metric", "fid", "--extrapolate").splitlines()
    assert "-50.0% of the epochs saved, at epoch 6.00 (extrapolated)" in said[0]
