from __future__ import annotations

import argparse
import io
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from masc_core.errors import ArtifactError
from training.torch_file import read_torch_file


def saved(content: dict[str, Any], *, archive: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=archive)
    return buffer.getvalue()


@pytest.mark.parametrize("archive", [True, False])
def test_tensors_and_plain_values_come_back(tmp_path: Path, *, archive: bool) -> None:
    args = argparse.Namespace(lr=1e-4, sizes=[1, 2])
    weights = torch.arange(6.0).view(2, 3)
    content = {"model": {"w": weights}, "args": args, "steps": 7}
    path = tmp_path / "c.pt"
    path.write_bytes(saved(content, archive=archive))
    read = read_torch_file(path)
    assert torch.equal(read["model"]["w"], weights)
    assert (read["args"], read["steps"]) == (args, 7)


@pytest.mark.parametrize("archive", [True, False])
def test_a_damaged_file_is_one_clear_line(tmp_path: Path, *, archive: bool) -> None:
    whole = saved({"w": torch.arange(6.0), "steps": 7}, archive=archive)
    choices, path = random.Random(0), tmp_path / "c.pt"
    refusals: list[str] = []
    for i in range(100):
        damaged = bytearray(whole[: choices.randrange(len(whole))] if i % 2 else whole)
        for _ in range(3 if damaged else 0):
            damaged[choices.randrange(min(400, len(damaged)))] = choices.randrange(256)
        path.write_bytes(damaged)
        try:
            read_torch_file(path)
        except ArtifactError as error:
            refusals.append(str(error))
    assert len(refusals) > 50
    assert not any("\n" in refusal for refusal in refusals)
