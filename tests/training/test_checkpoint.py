from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from masc_core.errors import ArtifactError
from training.checkpoint import Progress, load_checkpoint, save_checkpoint


def trained(seed: int, width: int = 3) -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(seed)
    model = nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, width)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def test_everything_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    model, optimizer = trained(0)
    save_checkpoint(path, Progress(7, 1.5, 60.0), model, optimizer, {"lr": 0.1})
    expected_draw = torch.rand(3)
    other, other_optimizer = trained(1)
    assert load_checkpoint(path, other, other_optimizer) == Progress(7, 1.5, 60.0)
    assert torch.equal(torch.rand(3), expected_draw)
    assert torch.equal(other.weight, model.weight)
    for key, value in optimizer.state[model.weight].items():
        assert torch.equal(other_optimizer.state[other.weight][key], value)
    assert other_optimizer.param_groups[0]["lr"] == 0.1


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, Progress(), *trained(0), {})
    with pytest.raises(ArtifactError, match="of another model"):
        load_checkpoint(path, *trained(0, width=4))


@pytest.mark.parametrize("damage", ["truncate", "other", "missing"])
def test_a_damaged_file_is_refused_and_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, Progress(), *trained(0), {})
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "other":
        path.write_bytes(b"hello")
    else:
        path.unlink()
    with pytest.raises(ArtifactError, match=r"c\.safetensors"):
        load_checkpoint(path, *trained(0))
