"""The command line on other terminals than ours, and behind pipes; shells and their habits."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from masc_core import numba_jit
from masc_core.bundle.registry import Registry
from masc_core.settings import models_dir
from server.settings import load_settings
from tests.command_line import ROOT, Masc, environment
from tests.tiny_bundle import save_bundle, save_tiny_bundle, tiny_card, tiny_parts
from training.config import load_config
from training.stages.configs import CodesConfig, CompareConfig


@pytest.fixture
def models(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    save_tiny_bundle(root)
    return root


def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`masc` with its output into a pipe, as `masc ... | cat` has it."""
    return subprocess.run(
        [sys.executable, "-m", "masc", *map(str, arguments)],
        cwd=ROOT,
        env=environment() | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_table_behind_a_pipe_has_one_line_a_row(models: Path) -> None:
    registry = Registry(models)
    name = "a-name-of-a-model-that-is-longer-than-many-a-terminal-" * 2
    save_tiny_bundle(models, name=name[:120])
    done = run("models", "list", "--models", models, COLUMNS="40")
    rows = [line for line in done.stdout.splitlines() if "4x4" in line]
    assert len(rows) == len(registry.names()) == 2
    assert any(name[:120] in row for row in rows)


def test_tables_can_be_had_as_json(masc: Masc, models: Path, tmp_path: Path) -> None:
    (row,) = json.loads(masc("models", "list", "--json", "--models", models).stdout)
    assert (row["name"], row["version"], row["state"]) == ("tiny", "1", "*")
    file = tmp_path / "keys.toml"
    assert masc("keys", "create", "bob", "--file", file, "--queue-share", "0.5").status == 0
    listed = masc("keys", "list", "--file", file, "--json").stdout
    assert json.loads(listed) == [
        {
            "name": "bob",
            "requests_per_minute": None,
            "queue_share": 0.5,
            "weight": 1.0,
            "priority": "interactive",
        }
    ]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_a_terminal_cannot_show_is_escaped(models: Path, encoding: str) -> None:
    listed = run("models", "list", "--models", models, PYTHONIOENCODING=encoding)
    assert listed.returncode == 0
    assert "┃" not in listed.stdout
    wrong = run("models", "activate", "日本", "1", "--models", models, PYTHONIOENCODING=encoding)
    assert wrong.returncode == 2
    assert r"no model '\u65e5\u672c'" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1


def test_names_are_printed_as_they_are(masc: Masc, models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a [red] :smile: [/b]"
    folder.mkdir(parents=True)
    out = folder / "x[bold].png"
    done = masc("generate", "bee", "--out", out, "--models", models)
    assert done.stdout == f"1 file(s): {out}\n"
    missing = folder / "no[/]where" / "x.png"
    assert f"there is no folder {missing.parent}" in masc("generate", "--out", missing).stderr


def test_names_make_no_lines_of_their_own(masc: Masc, models: Path) -> None:
    done = masc("generate", "x\nmasc: all is well\x1b[31m\u202e\u200f", "--models", models)
    assert done.status == 2
    assert len(done.stderr.splitlines()) == 1
    assert r"x\nmasc: all is well" in done.stderr.replace("\\\\", "\\")
    assert not set("\x1b\u202e\u200f") & set(done.stderr)


def test_a_table_has_no_lines_of_a_names_own(masc: Masc, models: Path) -> None:
    manifest = models / "tiny" / "1" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "x\ntiny 2 * \x1b[31m": 1}))
    listed = masc("models", "list", "--models", models).stdout
    assert r"damaged: x\ntiny 2 * \u001b[31m" in listed
    assert "\x1b" not in listed


def test_home_is_found_wherever_a_path_is_read(
    masc: Masc, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    done = masc("generate", "bee", "--out=~/bee.png", "--models=~/models")
    assert done.stdout == f"1 file(s): {tmp_path / 'bee.png'}\n"
    assert masc("generate", "bee", "--out", "~/b", MASC_MODELS_DIR="~/models").status == 0
    assert (tmp_path / "b").is_dir()
    assert models_dir(Path("~/models")) == models
    keys = load_settings(api_keys_file="~/keys.toml", models_dir="~").api_keys_file
    assert keys == tmp_path / "keys.toml"
    (tmp_path / "codes.toml").write_text('tokenizer = "~/t"\ndata = "~"\nout = "o"\n')
    codes = load_config(CodesConfig, Path("~/codes.toml"), {})
    assert (codes.tokenizer, codes.data, codes.out) == (tmp_path / "t", tmp_path, Path("o"))
    options = {"tokenizer": "t", "images": "~/i", "out": "o", "priors": ["~/p.npz", "q.npz"]}
    compared = load_config(CompareConfig, None, options)
    assert compared.priors == (tmp_path / "p.npz", Path("q.npz"))
    nobody = load_config(
        CodesConfig, None, {"tokenizer": "~nobody-here/t", "data": "d", "out": "o"}
    )
    assert nobody.tokenizer == Path("~nobody-here/t")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("masc tok", ["tokenizer"]),
        ("masc tokenizer ", ["train", "reconstruct", "evaluate", "import"]),
        ("masc models ", ["list", "publish", "import", "pull", "activate", "rollback", "verify"]),
        ("masc transformer train --grad", ["--grad-clip"]),
        ("masc models publish --refi", ["--refiner"]),
        ("masc keys create --que", ["--queue-share"]),
        ("masc evaluate --infer", []),
    ],
)
def test_shells_complete_every_command(typed: str, offered: list[str]) -> None:
    words = typed.split(" ")
    variables = {"_MASC_COMPLETE": "complete_bash", "COMP_WORDS": typed}
    done = run(COMP_CWORD=str(len(words) - 1), **variables)
    assert done.stdout.split() == offered


def test_a_backend_of_jupyter_is_of_no_concern() -> None:
    program = (
        "import masc, sys; sys.argv[1:] = ['--help']\ntry: masc.main()\nexcept SystemExit: pass"
    )
    backend = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment() | backend,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_loops_that_cannot_be_kept_are_compiled_all_the_same(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    source: dict[str, object] = {}
    # Numba finds no place for what comes from no file, as for a folder that cannot be written.
    exec("def double(x):\n    return 2 * x\ndef half(x):\n    return x / 2", source)  # noqa: S102
    numba_jit._warn_of_no_cache.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert numba_jit.njit_serial(source["double"])(3) == 6  # type: ignore[type-var, operator]
        assert numba_jit.njit_parallel(source["half"])(3) == 1.5  # type: ignore[type-var, operator]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "NUMBA_CACHE_DIR" in caplog.text
    assert os.linesep not in caplog.records[0].getMessage()


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(models: Path, tmp_path: Path, closed: str) -> None:
    out = tmp_path / "x.png"
    program = f'"{sys.executable}" -m masc generate cat --models "{models}" --out "{out}" {closed}'
    done = subprocess.run(
        ["sh", "-c", program], cwd=ROOT, env=environment(), capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("generate cat --out {0}/x.png", "masc: {0}/x.png: there is no folder"),
        ("generate cat --out {0}", "masc: {0}: cannot be written (File exists)"),
        ("keys create bob --file {0}/keys.toml", "masc: [Errno 20] Not a directory: '{0}/keys"),
    ],
)
def test_places_that_take_nothing_are_named_in_a_line(
    masc: Masc, models: Path, tmp_path: Path, command: str, complaint: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    done = masc(*command.format(file).split(), MASC_MODELS_DIR=models)
    assert done.status == 2
    assert done.stderr.startswith(complaint.format(file))
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "status", "complaint"),
    [
        ("models list --models {0} > /dev/full", 2, "masc: [Errno 28] No space left on device\n"),
        ("models list --json --models {0} > /dev/full", 2, "masc: [Errno 28] No space left"),
        ("models list --models {0} | true", 0, ""),  # the status is the reader's
    ],
)
def test_a_pipe_that_takes_nothing_is_named_in_a_line(
    models: Path, command: str, status: int, complaint: str
) -> None:
    program = f'"{sys.executable}" -m masc {command.format(models)}'
    done = subprocess.run(
        ["sh", "-c", program],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert done.stderr.startswith(complaint)
    assert len(done.stderr.splitlines()) == bool(complaint)


@pytest.mark.parametrize("variable", ["COLUMNS=20", "NO_COLOR=1", "TERM=dumb", "FORCE_COLOR=1"])
def test_a_terminal_of_another_kind_changes_no_row_of_a_pipe(models: Path, variable: str) -> None:
    name, value = variable.split("=")
    listed = run("models", "list", "--models", models, **{name: value})
    assert any("tiny" in line and "4x4, 16/32" in line for line in listed.stdout.splitlines())


def test_of_images_masc_alone_speaks(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16))
    for name in "ab":
        (tmp_path / "x" / name).mkdir(parents=True)
        image.save(tmp_path / "x" / name / "0.png")
    broken = io.BytesIO()
    image.save(broken, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")  # Pillow warns
    (tmp_path / "x" / "a" / "1.jpg").write_bytes(broken.getvalue())
    out = tmp_path / "models"
    save_bundle(out / "tiny" / "1", tiny_card(), tiny_parts(), with_encoder=True)
    done = run(
        *("codes", "extract", "--tokenizer", out / "tiny" / "1", "--data", tmp_path / "x"),
        *("--image-size", "16", "--out", tmp_path / "codes"),
    )
    assert done.returncode == 0
    assert "Corrupt" not in done.stderr
    assert done.stdout.startswith("3 images, 0 skipped")
