"""Tensors to disk and back."""

import math
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from masc_core.errors import ArtifactError
from masc_core.io.tensors import fill_module, read_tensors, write_tensors


def test_floats_are_stored_in_the_given_precision_and_integers_as_they_are(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.safetensors"
    matrix = torch.arange(6.0).view(2, 3)
    tensors = {"a": matrix.t(), "b": torch.tensor([2**62]), "c": matrix[0], "d": matrix[0]}
    write_tensors(path, tensors, torch.bfloat16)
    read = read_tensors(path)
    assert torch.equal(read["a"], matrix.t().bfloat16())
    assert torch.equal(read["b"], tensors["b"])
    assert torch.equal(read["d"], matrix[0].bfloat16())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_does_not_fit_the_precision_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for value in (1e6, math.nan):
        with pytest.raises(ArtifactError, match="the tensor a is not finite in"):
            write_tensors(path, {"a": torch.tensor([value])}, torch.float16)
    assert not path.exists()


def test_fill_module_converts_and_lets_optional_tensors_be(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    source, target = nn.Linear(2, 3), nn.Linear(2, 3)
    write_tensors(path, {"weight": source.weight}, torch.float16)
    bias = target.bias.detach().clone()
    fill_module(path, target, optional=("bias",))
    assert torch.equal(target.weight, source.weight.half().float())
    assert torch.equal(target.bias, bias)
    with pytest.raises(ArtifactError, match="the tensor bias is not in it"):
        fill_module(path, target)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.float8_e4m3fn, torch.int64])
def test_weights_of_a_type_that_is_none_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.ones(2, 3).to(dtype), "bias": torch.ones(2)}, path)
    with pytest.raises(ArtifactError, match="the tensor weight has a wrong type"):
        fill_module(path, torch.nn.Linear(3, 2))


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="missing: cannot be read: No such file"):
        read_tensors(tmp_path / "missing")
    (tmp_path / "text").write_text("no tensors, but a text that is longer than a header")
    with pytest.raises(ArtifactError, match="cannot be read as safetensors"):
        read_tensors(tmp_path / "text")


def test_a_disk_that_is_full_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(ArtifactError, match=r"x\.safetensors: cannot be written: .*too large"):
            write_tensors(path, {"a": torch.zeros(1000)}, torch.float32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []
