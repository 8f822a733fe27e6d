"""The release before this code: its sources, and its wheel as it is installed."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from tests.command_line import ROOT

LAST = "d3b74900"  # stands for it until there is a tag; docs/releasing.md says when it changes
INSTALLED = ROOT / ".cache" / "releases" / LAST


def unpack_sources(folder: Path, *paths: str) -> None:
    """Unpack files of the last release."""
    with tarfile.open(fileobj=io.BytesIO(_git("archive", LAST, *paths))) as archive:
        archive.extractall(folder, filter="data")


def code_of(commit: str) -> list[str]:
    """Folders and files in a commit that its wheel is made of."""
    tools = tomllib.loads(_git("show", f"{commit}:pyproject.toml").decode())["tool"]["setuptools"]
    folders = _git("ls-tree", "-d", "--name-only", commit).decode().splitlines()
    patterns = tools["packages"]["find"]["include"]
    packages = [name for name in folders if any(fnmatchcase(name, one) for one in patterns)]
    return [*packages, *(f"{module}.py" for module in tools["py-modules"])]


def _git(*arguments: str) -> bytes:
    """What git says of the history.

    Where there is none the test is skipped, but fails with ``REQUIRE_HISTORY``, which the workflow
    sets.
    """
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        told = f"no history here, `git fetch --unshallow` gets it: {done.stderr.decode().strip()}"
        assert not os.environ.get("REQUIRE_HISTORY"), told
        pytest.skip(told)
    return done.stdout


def installed_wheel() -> Path:
    """What the last release's wheel holds, for ``PYTHONPATH``; made once, with kernels."""
    if INSTALLED.exists():
        return INSTALLED
    with tempfile.TemporaryDirectory() as temporary:
        sources, made = Path(temporary, "sources"), Path(temporary, "made")
        unpack_sources(sources, "pyproject.toml", "README.md", "LICENSE", *code_of(LAST))
        build = ["-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
        subprocess.run(
            [sys.executable, *build, "--no-build-isolation", "-w", temporary, str(sources)],
            check=True,
        )
        (wheel,) = Path(temporary).glob("*.whl")
        shutil.unpack_archive(wheel, made, "zip")
        compile_all = [sys.executable, "-m", "masc_core.cpu_kernels"]
        subprocess.run(compile_all, env=environment_of(made), check=True)
        INSTALLED.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, INSTALLED)
    return INSTALLED


def environment_of(code: Path) -> dict[str, str]:
    """Variables with which a process runs the code in a folder, whatever is installed."""
    return os.environ | {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}
