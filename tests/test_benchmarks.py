"""Programs of `benchmarks` can be started as people start them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.command_line import ROOT, environment

# Starts each program in a process of its own, all of which share what the first one imports.
START_EACH = """
import os, runpy, sys
import matplotlib.figure, torch
import server.app, training.stages.evaluate, training.studies.compare, worker.main
for program in sys.argv[1:]:
    child = os.fork()
    if not child:
        sys.path[0], sys.argv = os.path.dirname(program), [program, "--help"]
        runpy.run_path(program, run_name="__main__")
    print(program, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
LEGS = ("training", "swap")  # of the rehearsal, those that take seconds


def test_every_program_tells_its_options(tmp_path: Path) -> None:
    programs = sorted(map(str, (ROOT / "benchmarks").glob("*.py")))
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
    assert "+ benchmarks" in rehearse(tmp_path, "training", FORCE="1").stdout


def test_a_leg_that_fails_stops_no_other_and_is_told_at_the_end(tmp_path: Path) -> None:
    done = rehearse(tmp_path, "training", "swap", PYTHON="false")
    assert done.returncode == 1
    assert "failed: training swap;" in done.stderr
    assert not list(tmp_path.rglob("done"))


def test_an_unknown_leg_is_refused_before_any_begins(tmp_path: Path) -> None:
    done = rehearse(tmp_path, "training", "paint")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no leg paint; there are tests engine-l engine-xl tree training" in done.stderr
