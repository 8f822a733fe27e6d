"""EfficientNet-Lite0 trained on ImageNet, a judge that never saw the images of this project.

Class agreement is among the model's own classes, for it is asked which of them an image shows; the
features are the 1,280 means before the head.

Legend: N images, S pixels a side, C classes of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from masc_core.io.files import sha256_file
from training.metrics.fidelity import Extractor
from training.pretrained.class_names import NUM_IMAGENET, read_class_names
from training.pretrained.efficientnet import MEAN, SCALE, load_network

LABEL = "efficientnet"
IMAGE_SIZE = 224


def load_efficientnet(class_names: Sequence[str], device: torch.device) -> Extractor:
    """Features, and logits of a model's classes where all of them are ImageNet's by name.

    A ConfigError where the packages are not installed.
    """
    model, path = load_network()
    classes = imagenet_classes(class_names)
    return Extractor(
        LABEL,
        _Classifier(model, classes),
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
