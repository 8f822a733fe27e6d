"""A release, tried without leaving anything behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.command_line import ROOT

PROGRAM = ".ci/release"


def release(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", PROGRAM, *arguments]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
    return subprocess.run(
        command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True
    )


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_a_dry_run_builds_everything_and_leaves_nothing() -> None:
    before = git("rev-parse", "HEAD"), git("tag"), git("status", "--porcelain")
    done = release("--dry-run", "9.8.7")
    assert done.returncode == 0, done.stderr
    assert before == (git("rev-parse", "HEAD"), git("tag"), git("status", "--porcelain"))
    assert "Release 9.8.7" in done.stdout
    assert {"masc-9.8.7.tar.gz", "masc-9.8.7-py3-none-any.whl"} <= set(done.stdout.split())
    sources = git(
        *("ls-files", "masc.py", "masc_core", "object_storage", "training", "worker", "server")
    ).split()
    assert set(sources) - set(done.stdout.split()) == set()
    for name in ("CHANGELOG.md", "CITATION.cff", "pyproject.toml"):
        assert f" {name} " in done.stdout


@pytest.mark.parametrize("arguments", [(), ("1.0",), ("--dry-run", "v1.0.0")])
def test_a_version_has_three_numbers(arguments: tuple[str, ...]) -> None:
    done = release(*arguments)
    assert done.returncode == 1
    assert "MAJOR.MINOR.PATCH" in done.stderr
