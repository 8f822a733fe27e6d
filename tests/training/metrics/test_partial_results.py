from __future__ import annotations

from pathlib import Path

import pytest
import torch

from masc_core.errors import ArtifactError, ConfigError
from training.metrics.partial_results import PartialResults

SUMS = {"sums": torch.tensor([0.1, 2.0], dtype=torch.float64), "seen": torch.tensor(3)}


def test_what_was_saved_is_there_again_to_the_bit(tmp_path: Path) -> None:
    PartialResults(tmp_path, {"seed": 1}).save("a", SUMS)
    found = PartialResults(tmp_path, {"seed": 1}).load("a")
    assert found is not None
    assert all(torch.equal(found[name], value) for name, value in SUMS.items())
    assert found["sums"].dtype == torch.float64
    assert PartialResults(tmp_path, {"seed": 1}).load("b") is None


def test_other_settings_are_named(tmp_path: Path) -> None:
    PartialResults(tmp_path, {"seed": 1, "top_k": 0, "gone": True})
    with pytest.raises(ConfigError, match="unfinished with other gone, top_k; finish that"):
        PartialResults(tmp_path, {"seed": 1, "top_k": 5})


def test_when_all_is_done_other_settings_begin(tmp_path: Path) -> None:
    begun = PartialResults(tmp_path, {"seed": 1})
    begun.save("a", SUMS)
    begun.remove()
    assert list(tmp_path.iterdir()) == []
    assert PartialResults(tmp_path, {"seed": 2}).load("a") is None


def test_what_was_being_removed_counts_for_nothing(tmp_path: Path) -> None:
    PartialResults(tmp_path, {"seed": 1}).save("a", SUMS)
    (tmp_path / "unfinished" / "settings.json").unlink()
    assert PartialResults(tmp_path, {"seed": 2}).load("a") is None


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    PartialResults(tmp_path, {}).save("a", SUMS)
    path = tmp_path / "unfinished" / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"a\.safetensors: cannot be read"):
        PartialResults(tmp_path, {}).load("a")
    settings = tmp_path / "unfinished" / "settings.json"
    settings.write_text("[")
    with pytest.raises(ArtifactError, match=r"settings\.json: cannot be read"):
        PartialResults(tmp_path, {})


def test_without_a_place_nothing_is_kept() -> None:
    nowhere = PartialResults()
    nowhere.save("a", SUMS)
    assert nowhere.load("a") is None
    nowhere.remove()
