from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from masc_core.errors import ArtifactError
from training.loop.checkpoint import (
    TrainState,
    checkpoint_config,
    latest_checkpoint,
    latest_step,
    load_checkpoint,
    save_checkpoint,
)
from training.loop.distributed import Ranks
from training.loop.ema import EMA
from training.loop.task import TrainedModule

STANDING = TrainState(7, 1.5, 60.0)
ALONE = Ranks(torch.device("cpu"))


def trained(seed: int, width: int = 3) -> TrainedModule:
    torch.manual_seed(seed)
    model = nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, width)).square().sum().backward()
        optimizer.step()
    return TrainedModule(model, model, optimizer)


def untrained(seed: int, width: int = 3) -> TrainedModule:
    torch.manual_seed(seed)
    model = nn.Linear(width, 2)
    return TrainedModule(model, model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True))


def saved(folder: Path, state: TrainState = STANDING) -> Path:
    save_checkpoint(folder, state, (trained(0),), None, {"lr": 0.1}, ALONE)
    path = latest_checkpoint(folder)
    assert path is not None
    return path


@pytest.mark.parametrize("make", [trained, untrained])
def test_everything_comes_back(tmp_path: Path, make: object) -> None:
    trained_modules = (trained(0), trained(1, width=5))
    average = EMA(trained_modules[0].model, 0.5)
    with torch.no_grad():
        next(trained_modules[0].model.parameters()).add_(1)
    average.update()
    save_checkpoint(
        tmp_path, TrainState(7, 1.5, 60.0), trained_modules, average, {"lr": 0.1}, ALONE
    )
    others = (make(2), make(3, width=5))  # type: ignore[operator]
    other_average = EMA(others[0].model, 0.5)
    path = latest_checkpoint(tmp_path)
    assert path is not None
    assert load_checkpoint(path, others, other_average, ALONE) == TrainState(7, 1.5, 60.0)
    assert checkpoint_config(path) == {"lr": 0.1}
    for module, other in zip(trained_modules, others, strict=True):
        pairs = zip(module.model.parameters(), other.model.parameters(), strict=True)
        for parameter, restored in pairs:
            assert torch.equal(parameter, restored)
            moments = module.optimizer.state[parameter]
            assert moments.keys() == other.optimizer.state[restored].keys() != set()
            for key, value in moments.items():
                assert torch.equal(other.optimizer.state[restored][key], value)
    for name, value in average.values.items():
        assert torch.equal(other_average.values[name], value)


def test_the_latest_takes_the_place_of_the_others(tmp_path: Path) -> None:
    assert latest_step(latest_checkpoint(tmp_path)) == 0
    first = saved(tmp_path, TrainState(9))
    (tmp_path / "checkpoints" / ".tmp-0000010").mkdir()
    second = saved(tmp_path, TrainState(10))
    assert latest_step(second) == 10
    assert [path.name for path in first.parent.iterdir()] == ["0000010"]


def test_a_folder_without_its_state_is_not_complete(tmp_path: Path) -> None:
    path = saved(tmp_path)
    (path / "state.json").unlink()
    assert latest_checkpoint(tmp_path) is None


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.raises(ArtifactError, match=r"another model: model.0.weight is \(2, 3\) in it"):
        load_checkpoint(path, (untrained(0, width=4),), None, ALONE)


def test_other_parts_are_refused(tmp_path: Path) -> None:
    path, module = saved(tmp_path), untrained(0)
    with pytest.raises(ArtifactError, match=r"lacks average\.bias"):
        load_checkpoint(path, (module,), EMA(module.model, 0.5), ALONE)
    save_checkpoint(tmp_path, TrainState(8), (trained(0), trained(1)), None, {}, ALONE)
    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    with pytest.raises(ArtifactError, match=r"has model\.1\.bias"):
        load_checkpoint(latest, (untrained(0),), None, ALONE)


@pytest.mark.parametrize("damage", ["truncate", "other", "missing", "state"])
def test_a_damaged_checkpoint_is_refused_and_named(tmp_path: Path, damage: str) -> None:
    path = saved(tmp_path)
    shard = next(path.glob("*.safetensors"))
    if damage == "truncate":
        shard.write_bytes(shard.read_bytes()[:-10])
    elif damage == "other":
        shard.write_bytes(b"hello")
    elif damage == "missing":
        shard.unlink()
    else:
        (path / "state.json").write_text("[]")
    with pytest.raises(ArtifactError, match="0000007"):
        load_checkpoint(path, (untrained(0),), None, ALONE)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let a write that goes beyond fail, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 100, 800])
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path, room: int) -> None:
    first = saved(tmp_path, TrainState(9))
    with (
        files_of_at_most(room),
        pytest.raises(ArtifactError, match=r"0000010: cannot be written .*File too large"),
    ):
        saved(tmp_path, TrainState(10))
    assert [path.name for path in first.parent.iterdir()] == ["0000009"]
    module = untrained(0)
    assert load_checkpoint(first, (module,), None, ALONE) == TrainState(9)
    assert torch.equal(next(module.model.parameters()), next(trained(0).model.parameters()))
    assert latest_step(saved(tmp_path, TrainState(10))) == 10
