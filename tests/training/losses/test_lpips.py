from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from masc_core.errors import ArtifactError
from tests.training.losses.vgg_files import linear_weights, vgg_weights, write_weights
from training.losses.lpips import MIN_SIZE, Lpips


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_weights(tmp_path_factory.mktemp("vgg"))


@pytest.fixture(scope="module")
def lpips(files: tuple[Path, Path]) -> Lpips:
    return Lpips.load(*files)


def drawn_images(count: int, size: int) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1


def plain_distance(image: Tensor, reference: Tensor) -> float:
    """The definition, for one pair of images, with a loop over the places."""
    vgg, linear = vgg_weights(), linear_weights()
    pair = torch.stack([image, reference])
    for channel, (shift, scale) in enumerate([(-0.030, 0.458), (-0.088, 0.448), (-0.188, 0.450)]):
        pair[:, channel] = (pair[:, channel] - shift) / scale
    total = 0.0
    for depth, block in enumerate([(0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)]):
        pair = F.max_pool2d(pair, 2, 2) if depth else pair
        for i in block:
            pair = F.conv2d(pair, vgg[f"features.{i}.weight"], vgg[f"features.{i}.bias"], padding=1)
            pair = F.relu(pair)
        a, b = pair.double().numpy().reshape(2, pair.shape[1], -1)
        weight = linear[f"lin{depth}.model.1.weight"].double().numpy().ravel()
        places = [
            weight @ (x / np.linalg.norm(x) - y / np.linalg.norm(y)) ** 2
            for x, y in zip(a.T, b.T, strict=True)
        ]
        total += float(np.mean(places))
    return total


def test_agrees_with_the_definition(lpips: Lpips) -> None:
    images, references = drawn_images(4, 32).chunk(2)
    expected = [plain_distance(*pair) for pair in zip(images, references, strict=True)]
    assert lpips(images, references).tolist() == pytest.approx(expected, rel=1e-4)
    assert lpips(images, images).tolist() == [0, 0]


def test_training_mode_and_gradients(lpips: Lpips) -> None:
    images, references = drawn_images(4, MIN_SIZE).chunk(2)
    quiet = lpips.eval()(images, references)
    images.requires_grad_()
    references.requires_grad_()
    distance = lpips.train()(images, references)
    assert torch.equal(distance, quiet)
    distance.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert references.grad is None
    assert not any(p.requires_grad for p in lpips.parameters())


def test_places_where_all_features_are_zero_have_finite_gradients() -> None:
    lpips = Lpips()
    with torch.no_grad():
        lpips.get_parameter("features.0.bias").fill_(-100.0)
    images, references = drawn_images(2, 16).chunk(2)
    lpips(images.requires_grad_(), references).sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_autocast_keeps_the_differences_in_full_precision(lpips: Lpips) -> None:
    images, references = drawn_images(4, 32).chunk(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = lpips(images, references)
    assert low.dtype == torch.float32
    assert low.tolist() == pytest.approx(lpips(images, references).tolist(), rel=0.02)


def test_safetensors_are_read_as_well(lpips: Lpips, tmp_path: Path) -> None:
    save_file(vgg_weights(), tmp_path / "vgg16.safetensors")
    save_file(linear_weights(), tmp_path / "linear.safetensors")
    other = Lpips.load(tmp_path / "vgg16.safetensors", tmp_path / "linear.safetensors")
    for name, tensor in lpips.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


@pytest.mark.parametrize("content", [None, b"", b"<html>", b"PK\x03\x04", b"\x80\x02."])
def test_a_file_that_is_no_file_of_weights(
    files: tuple[Path, Path], tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "vgg.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match="cannot be read as weights") as error:
        Lpips.load(files[0], path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_code_in_a_file_is_not_run(files: tuple[Path, Path], tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "touched",)

    path = tmp_path / "vgg.pth"
    path.write_bytes(pickle.dumps({"lin0.model.1.weight": Touch()}, protocol=2))
    with pytest.raises(ArtifactError, match="cannot be read as weights"):
        Lpips.load(files[0], path)
    assert not (tmp_path / "touched").exists()


def test_a_file_of_something_else(files: tuple[Path, Path], tmp_path: Path) -> None:
    vgg, linear = files
    with pytest.raises(ArtifactError, match=r"features\.0\.weight is not in it"):
        Lpips.load(linear, linear)
    path = tmp_path / "vgg.pth"
    torch.save([1, 2], path)
    with pytest.raises(ArtifactError, match="holds no named tensors"):
        Lpips.load(vgg, path)
    squeezed = linear_weights() | {"lin3.model.1.weight": torch.rand(1, 256, 1, 1)}
    torch.save(squeezed, path)
    expected = r"lin3.model.1.weight is \(1, 256, 1, 1\), where \(1, 512, 1, 1\) belongs"
    with pytest.raises(ArtifactError, match=expected):
        Lpips.load(vgg, path)
    broken = linear_weights() | {"lin0.model.1.weight": torch.full((1, 64, 1, 1), torch.nan)}
    torch.save(broken, path)
    with pytest.raises(ArtifactError, match=r"lin0\.model\.1\.weight has a NaN"):
        Lpips.load(vgg, path)
