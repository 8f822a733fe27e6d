from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from masc_core.errors import ArtifactError
from tests.training.pretrained.checkpoints import (
    CONTAINERS,
    arguments,
    gpt_tensors,
    save_checkpoint,
)
from training.pretrained.checkpoint_file import CheckpointFile


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_container_gives_the_same_tensors(tmp_path: Path, kind: str) -> None:
    expected = gpt_tensors()
    checkpoint = CheckpointFile.open(save_checkpoint(tmp_path / "c.pt", expected, kind))
    assert checkpoint.tensors.keys() == expected.keys()
    assert all(torch.equal(checkpoint.tensors[name], one) for name, one in expected.items())
    assert checkpoint.rope_shape == ((17, 8, 2) if kind == "old" else None)


def test_steps_and_plain_arguments_are_told(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "c.pt", gpt_tensors(), "ddp")
    checkpoint = CheckpointFile.open(path)
    assert checkpoint.steps == 7
    plain = {"image_size": 16, "num_classes": 10, "gpt_model": "tiny", "lr": 1e-4}
    assert checkpoint.arguments == plain


def test_the_moving_average_is_taken_when_asked_for(tmp_path: Path) -> None:
    one, other = {"a": torch.zeros(1)}, {"a": torch.ones(1)}
    torch.save({"model": one, "ema": other}, tmp_path / "c.pt")
    torch.save({"model": one}, tmp_path / "none.pt")
    assert CheckpointFile.open(tmp_path / "c.pt").tensors["a"] == 0
    assert CheckpointFile.open(tmp_path / "c.pt", "ema").tensors["a"] == 1
    with pytest.raises(ArtifactError, match=r"none\.pt: has no moving average"):
        CheckpointFile.open(tmp_path / "none.pt", "ema")


def test_archives_stay_on_the_disk_and_files_of_old_do_not(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(4.0)}
    torch.save(tensors, tmp_path / "c.pt")
    torch.save(tensors, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("c.pt", "old.pt"):
        assert torch.equal(CheckpointFile.open(tmp_path / name).tensors["a"], tensors["a"])
    mapped = (tmp_path / "c.pt").resolve().as_posix()
    held = CheckpointFile.open(tmp_path / "c.pt")
    assert mapped in Path("/proc/self/maps").read_text()
    del held


class Payload:
    """What unpickling would make a program of."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("archive", [True, False])
def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(
    tmp_path: Path, *, archive: bool
) -> None:
    target, path = tmp_path / "owned", tmp_path / "evil.pt"
    content = {"model": gpt_tensors(), "args": Payload(target)}
    if archive:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content["args"]))
    with pytest.raises(ArtifactError) as caught:
        CheckpointFile.open(path)
    assert not target.exists()
    if archive:
        assert "evil.pt: asks for posix.system, which is neither a tensor" in str(caught.value)
    assert "\n" not in str(caught.value)
    torch.load(path, weights_only=False) if archive else pickle.loads(path.read_bytes())  # noqa: S301
    assert target.exists()  # so it was a real one


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is not a file of torch.save, or is damaged"),
        (b"hello, I am a text", "is not a file of torch.save, or is damaged"),
        (b"PK\x03\x04" + bytes(100), "is not a file of torch.save, or is damaged"),
        (None, "cannot be read: No such file"),
    ],
)
def test_what_is_no_checkpoint_is_one_clear_line(
    tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    path = tmp_path / "c.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=complaint) as caught:
        CheckpointFile.open(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_archive_is_one_clear_line(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "c.pt", gpt_tensors(), "ddp")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ArtifactError, match="is not a file of torch"):
        CheckpointFile.open(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([torch.zeros(1)], "holds a list, not named tensors"),
        ({}, "holds no tensors"),
        ({"weights": {"a": torch.zeros(1)}}, "holds 'weights', which is no tensor"),
        ({"a": torch.zeros(1), "module.a": torch.zeros(1)}, "holds the tensor a twice"),
        ({"model": {"a": 1}}, "holds 'a', which is no tensor"),
        ({1: torch.zeros(1)}, "holds '1', which is no tensor"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: object, complaint: str) -> None:
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(ArtifactError, match=complaint):
        CheckpointFile.open(tmp_path / "c.pt")


def test_arguments_may_hold_anything_plain(tmp_path: Path) -> None:
    args = arguments(nested=arguments(), many=[1], bad=float("nan"))
    torch.save({"model": {"a": torch.zeros(1)}, "args": args}, tmp_path / "c.pt")
    assert CheckpointFile.open(tmp_path / "c.pt").arguments["bad"] == "nan"
