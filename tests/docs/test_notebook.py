"""The notebook, cell by cell, as someone reads it; what a cell shows is left to Jupyter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from masc_core import Generation

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"
CELLS = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]


def test_the_notebook_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(NOTEBOOK.parent)
    names: dict[str, object] = {}
    for cell in CELLS:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)  # noqa: S102 - ours
    printed = capsys.readouterr().out
    assert "2048 codes in 1024 clusters" in printed
    assert "64 clusters, the largest of" in printed
    made, fine, coarse = (names[name] for name in ("made", "fine", "coarse"))
    assert isinstance(made, Generation)
    assert np.mean(fine == made.codes) > np.mean(coarse == made.codes)


def test_the_notebook_is_kept_without_what_it_shows() -> None:
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
