from __future__ import annotations

import subprocess
from pathlib import Path

import torch

from training import provenance
from training.provenance import _commit, made_with


def test_programs_are_named() -> None:
    made = made_with()
    assert made["torch"] == torch.__version__
    assert {"masc", "python", "numpy", "safetensors"} <= made.keys()


def git(folder: Path, *arguments: str) -> None:
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *author, *arguments], check=True, capture_output=True)


def test_the_commit_of_a_checkout_is_named(tmp_path: Path) -> None:
    assert _commit(tmp_path) == {}
    git(tmp_path, "init")
    assert _commit(tmp_path) == {}
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "x")
    clean = _commit(tmp_path)
    assert len(str(clean["commit"])) == 40
    assert clean["commit_changed"] is False
    (tmp_path / "a").write_text("2")
    assert _commit(tmp_path) == clean | {"commit_changed": True}
    (tmp_path / "b").mkdir()
    assert _commit(tmp_path / "b") == {}  # installed inside somebody else's checkout


def test_a_folder_that_git_cannot_read_has_no_commit(tmp_path: Path) -> None:
    assert provenance._git(tmp_path / "none", "rev-parse", "HEAD") is None
