"""Programs of `benchmarks` can be started as people start them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.command_line import ROOT, environment

PROGRAMS = sorted((ROOT / "benchmarks").glob("*.py"))
LEGS = ("training", "swap")  # of the rehearsal, those that take seconds


# Each as a program of its own, one after the other in one process, which imports torch once.
ASK_ALL = """
import runpy, sys, traceback

elsewhere = sys.path[1:]
for program in sys.argv[1:]:
    sys.argv, sys.path[:] = [program, "--help"], [program.rpartition("/")[0], *elsewhere]
    print("==", program)
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        print("-- ended with", end.code or 0)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each program says when it is asked for its options."""
    done = subprocess.run(
        [sys.executable, "-c", ASK_ALL, *map(str, PROGRAMS)],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    parts = [part.partition("\n") for part in done.stdout.split("== ")[1:]]
    return {name: text for name, _, text in parts}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_it_tells_its_options(program: Path, told: dict[str, str]) -> None:
    assert told[str(program)].startswith("usage:"), told[str(program)]
    assert told[str(program)].endswith("-- ended with 0\n")


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
