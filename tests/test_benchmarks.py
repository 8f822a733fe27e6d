"""Programs of `benchmarks` can be started as people start them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from tests.command_line import ROOT, environment
from tests.training import stage_configs as tiny
from training.stages.configs import ClassifierConfig, PublishConfig

# Starts each program in a process of its own, all of which share what the first one imports.
START_EACH = """
import os, runpy, sys
import matplotlib.figure, torch
import server.app, training.stages.evaluate, training.studies.compare, worker.main
for program in sys.argv[1:]:
    child = os.fork()
    if not child:
        sys.path[0], sys.argv = os.path.dirname(program), [program, "--help"]
        try:
            runpy.run_path(program, run_name="__main__")
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code or 0)  # at once: to clear torch away takes Python two seconds
    print(program, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
LEGS = ("training", "swap")  # of the rehearsal, those that take seconds


def test_every_program_tells_its_options(tmp_path: Path) -> None:
    files = sorted((ROOT / "benchmarks").glob("*.py"))
    programs = [str(file) for file in files if "__main__" in file.read_text()]
    done = subprocess.run(
        [sys.executable, "-c", START_EACH, *programs],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    ended = [line.split() for line in done.stdout.splitlines() if line.startswith(str(ROOT))]
    assert ended == [[program, "0"] for program in programs], done.stderr
    assert done.stdout.count("usage: ") == len(programs)


def rehearse(out: Path, *legs: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Legs of what is done on a GPU, on the CPU and at toy size."""
    given = {"DEVICE": "cpu", "QUICK": "1", "OUT": str(out), "PYTHON": sys.executable}
    return subprocess.run(
        [str(ROOT / "benchmarks" / "gpu.sh"), *legs],
        env=environment() | given | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_legs_are_rehearsed_and_passed_over_once_they_are_done(tmp_path: Path) -> None:
    first = rehearse(tmp_path, *LEGS)
    assert first.returncode == 0, first.stdout + first.stderr
    for leg in LEGS:
        assert "|---|" in (tmp_path / "cpu" / leg / "log.txt").read_text()
        assert (tmp_path / "cpu" / leg / "done").exists()
    assert (tmp_path / "cpu" / "training" / "training-cpu.json").exists()
    second = rehearse(tmp_path, *LEGS)
    assert second.returncode == 0
    assert [line.split(",")[0] for line in second.stdout.splitlines()[:2]] == [
        f"== {leg}: done before" for leg in LEGS
    ]
    assert "+ benchmarks" in rehearse(tmp_path, "training", FORCE="1", PYTHON="true").stdout


def test_processes_that_share_a_batch_are_timed_beside_one(tmp_path: Path) -> None:
    program = ["training_loop.py", "--quick", "--device", "cpu", "--processes", "2"]
    done = subprocess.run(
        [sys.executable, *program, "--out", str(tmp_path)],
        cwd=ROOT / "benchmarks",
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads((tmp_path / "training-cpu.json").read_text())["processes"]
    assert told["count"] == 2
    pace = told["images_per_second"]["tiny"]
    assert pace > 0
    line = f"tiny, 2 processes of a thread each share a batch: {pace:.0f} images/s"
    assert line in done.stdout
    assert line in (tmp_path / "training-cpu.md").read_text()


def test_a_leg_that_fails_stops_no_other_and_is_told_at_the_end(tmp_path: Path) -> None:
    done = rehearse(tmp_path, "training", "swap", PYTHON="false")
    assert done.returncode == 1
    assert "failed: training swap;" in done.stderr
    assert not list(tmp_path.rglob("done"))


def test_an_unknown_leg_is_refused_before_any_begins(tmp_path: Path) -> None:
    done = rehearse(tmp_path, "training", "paint")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no leg paint; there are tests engine-l engine-xl tree training" in done.stderr


def write_toml(path: Path, config: BaseModel) -> None:
    given = config.model_dump(mode="json", exclude_unset=True)
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in given.items()))


@pytest.mark.slow
@pytest.mark.timeout(300)  # two transformers and all that they need
def test_the_study_reports_each_run_and_repeats_none(tmp_path: Path) -> None:
    tiny.photographs(tmp_path)
    judge: dict[str, object] = {
        "data": tmp_path / "train",
        "val_data": tmp_path / "val",
        "out": tmp_path / "judge",
    }
    judge |= {"image_size": 16, "width": 8, "epochs": 1, "batch_size": 8}
    parts = {name: tmp_path / name for name in ("tokenizer", "transformer")}
    published = {**parts, "name": "tiny", "codes": tmp_path / "codes-train", "samples": 0}
    configs = {
        "tokenizer": tiny.tokenizer_config(tmp_path),
        "codes": tiny.codes_config(tmp_path, "train"),
        "codes-val": tiny.codes_config(tmp_path, "val"),
        "prior": tiny.prior_config(tmp_path),
        "transformer": tiny.transformer_config(tmp_path),
        "refiner": tiny.refiner_config(tmp_path, tmp_path / "transformer.safetensors", epochs=1),
        "completer": tiny.completer_config(tmp_path, epochs=1),
        "classifier": ClassifierConfig.model_validate(judge),
        "publish": PublishConfig.model_validate(published | {"shuffles": 0}),
    }
    (tmp_path / "tiny").mkdir()
    for name, config in configs.items():
        write_toml(tmp_path / "tiny" / f"{name}.toml", config)
    folders = ("--configs", "tiny", "--folder", "runs", "--out", "out")
    brief = ("--epochs", "1", "--cfg-scales", "2", "1", "--images-per-class", "4")

    program = [sys.executable, str(ROOT / "benchmarks" / "study.py"), *folders, *brief]

    def study(*runs: str) -> list[tuple[str, str, float]]:
        subprocess.run([*program, *runs], cwd=tmp_path, env=environment(), check=True)
        rows = json.loads((tmp_path / "out" / "study.json").read_text())
        return [(row["run"], row["decoding"], row["cfg_scale"]) for row in rows]

    flat = [("flat", "uniform", scale) for scale in (2, 1)]
    masc = [("masc", way, s) for way in ("uniform", "frequency", "refine") for s in (2, 1)]
    assert study("flat") == flat
    log = tmp_path / "out" / "study" / "flat" / "transformer" / "log.jsonl"
    before = log.read_bytes()
    ctf = [("ctf-kmeans++", way, s) for way in ("uniform", "frequency", "complete") for s in (2, 1)]
    assert study("flat", "masc", "ctf-kmeans++") == flat + masc + ctf
    assert log.read_bytes() == before
    report = (tmp_path / "out" / "study.md").read_text()
    for row in ("| flat | uniform | ", "| ctf-kmeans++ | complete | "):
        assert row in report
    rows = json.loads((tmp_path / "out" / "study.json").read_text())
    bits = {row["decoding"]: row["bits"] for row in rows if row["run"] == "masc"}
    assert len(set(bits.values())) == 3
    assert all(row["bits"] > row["cluster_bits"] for row in rows if row["run"] == "masc")

    assert all("seconds_per_image" not in row for row in rows)
    assert study("--time", "masc") == flat + masc + ctf
    rows = json.loads((tmp_path / "out" / "study.json").read_text())
    assert {row["run"] for row in rows if row.get("seconds_per_image", 0) > 0} == {"masc"}

    shutil.rmtree(tmp_path / "runs")  # the records are enough
    assert study("flat", "masc", "ctf-kmeans++") == flat + masc + ctf
    assert not (tmp_path / "runs").exists()
    other = [*program, "--epochs", "2", "ward"]
    refused = subprocess.run(
        other, cwd=tmp_path, env=environment(), check=False, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "was made with another epochs; give another --out" in refused.stderr
