from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field
from typer.testing import CliRunner, Result

from masc import TRAINING_MODELS_COMMANDS
from masc_core.errors import ConfigError
from tests.tiny_bundle import save_tiny_bundle
from training import cli
from training.cli import evaluate_command, stage_command, transformer_acceleration


class Sample(BaseModel):
    model_config = ConfigDict(extra="forbid")

    out: Path
    rate: float = Field(0.5, gt=0, description="how fast")
    sizes: tuple[int, ...] = (1, 2)
    flip: bool = True
    note: str = ""
    prior: Path | None = None


def sample_command(run: Callable[[Sample], None]) -> Callable[..., None]:
    @stage_command(Sample)
    def command(config: Sample) -> None:
        """Do it."""
        run(config)

    return command


def invoke(command: Callable[..., None], *arguments: object) -> Result:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})


def read(*arguments: str) -> tuple[list[Sample], str]:
    """What the command makes of the arguments, and what it prints."""
    seen: list[Sample] = []
    result = invoke(sample_command(seen.append), *arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return seen, result.output


def test_every_key_is_a_flag() -> None:
    seen, _ = read(
        "--out", "o", "--rate", "0.25", "--sizes", "3, 4,5", "--no-flip", "--note", "hello",
        "--prior", "p.npz",
    )  # fmt: skip
    assert seen == [
        Sample(
            out=Path("o"), rate=0.25, sizes=(3, 4, 5), flip=False, note="hello", prior=Path("p.npz")
        )
    ]


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('out = "file"\nrate = 2.0\nflip = false\n')
    seen, _ = read(str(path), "--rate", "3")
    assert seen == [Sample(out=Path("file"), rate=3.0, flip=False)]


def test_help_shows_descriptions_and_defaults() -> None:
    _, output = read("--help")
    assert "how fast (default: 0.5)" in output
    assert "default: 1,2" in output
    assert "Do it." in output


def test_out_of_range_and_unknown() -> None:
    with pytest.raises(ConfigError, match="rate: "):
        read("--out", "o", "--rate", "0")
    seen, output = read("--out", "o", "--speed", "3")
    assert not seen
    assert "No such option" in output


def test_an_interrupted_stage_says_how_to_go_on() -> None:
    def interrupt(config: Sample) -> None:
        raise KeyboardInterrupt

    result = invoke(sample_command(interrupt), "--out", "o")
    assert result.exit_code == 130
    assert "the same command goes on from here" in result.output


def log(folder: Path, *values: float) -> Path:
    folder.mkdir()
    rows = [json.dumps({"epoch": epoch, "fid": fid}) for epoch, fid in enumerate(values, 1)]
    (folder / "log.jsonl").write_text("\n".join(rows))
    return folder


def test_the_figures_are_printed_without_what_is_long(tmp_path: Path) -> None:
    save_tiny_bundle(tmp_path)
    options = ("--models", tmp_path, "--images-per-class", 1, "--decoding", "uniform", "--seed", 3)
    figures = json.loads(invoke(evaluate_command, "tiny", *options).stdout)
    assert figures["images"] == 5
    assert figures["settings"]["model"] == "tiny"
    assert (figures["settings"]["decoding"], figures["settings"]["first_seed"]) == ("uniform", 3)
    assert not {"curves", "definitions"} & figures.keys()


def test_runs_are_compared_with_a_baseline(tmp_path: Path) -> None:
    base, fast = log(tmp_path / "base", 9, 6, 5, 4), log(tmp_path / "fast", 6, 4, 3)
    slow = log(tmp_path / "slow", 9, 8, 7)
    said = invoke(transformer_acceleration, base, fast, slow, "--metric", "fid").stdout.splitlines()
    assert "50.0% of the epochs saved, at epoch 2.00" in said[0]
    assert "not reached" in said[1]
    said = invoke(
        transformer_acceleration, base, slow, "--metric", "fid", "--extrapolate"
    ).stdout.splitlines()
    assert "-50.0% of the epochs saved, at epoch 6.00 (extrapolated)" in said[0]


def test_the_registrys_commands_have_one_help() -> None:
    for text, name in TRAINING_MODELS_COMMANDS.values():
        assert getattr(cli, name).__doc__ == text
    assert "LlamaGen, IAR or GigaTok" in TRAINING_MODELS_COMMANDS["import"][0]
