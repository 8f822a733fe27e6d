from __future__ import annotations

from pathlib import Path

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field
from typer.testing import CliRunner

from masc_core.errors import ConfigError
from training.commands import stage_command


class Sample(BaseModel):
    model_config = ConfigDict(extra="forbid")

    out: Path
    rate: float = Field(0.5, gt=0, description="how fast")
    sizes: tuple[int, ...] = (1, 2)
    flip: bool = True
    note: str = ""
    prior: Path | None = None


def invoke(*arguments: str) -> tuple[list[Sample], str]:
    seen: list[Sample] = []
    app = typer.Typer()
    app.command()(stage_command(Sample, seen.append, "Do it."))
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return seen, result.output


def test_every_key_is_a_flag() -> None:
    seen, _ = invoke(
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
    seen, _ = invoke(str(path), "--rate", "3")
    assert seen == [Sample(out=Path("file"), rate=3.0, flip=False)]


def test_help_shows_descriptions_and_defaults() -> None:
    _, output = invoke("--help")
    assert "how fast (default: 0.5)" in output
    assert "default: 1,2" in output
    assert "Do it." in output


def test_out_of_range_and_unknown() -> None:
    with pytest.raises(ConfigError, match="rate: "):
        invoke("--out", "o", "--rate", "0")
    seen, output = invoke("--out", "o", "--speed", "3")
    assert not seen
    assert "No such option" in output


def test_an_interrupted_stage_says_how_to_go_on() -> None:
    def interrupt(config: Sample) -> None:
        raise KeyboardInterrupt

    app = typer.Typer()
    app.command()(stage_command(Sample, interrupt, "Do it."))
    result = CliRunner().invoke(app, ["--out", "o"])
    assert result.exit_code == 130
    assert "the same command goes on from here" in result.output
