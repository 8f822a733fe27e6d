"""The project's classifier of real images, which also classifies generated ones.

Its features are the channel means before the head. A Fréchet distance in them can be had without
anybody's weights; it is no FID, and is named after them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from masc_core.errors import ArtifactError
from masc_core.io.bounded import parse_json
from masc_core.io.files import read_json
from masc_core.io.tensors import fill_module, read_header, without_memory
from masc_core.models.vq import pixels_to_float
from training.changes import require_same_classes
from training.metrics.fidelity import Extractor
from training.metrics.reconstruction import to_float

CLASSIFIER_FILE = "classifier.safetensors"
LABEL = "classifier"


class Classifier(nn.Module):
    """Residual stages, each at half the resolution of the one before, down to 4x4 pixels.

    Parameters
    ----------
    num_classes : classes to tell apart
    image_size : pixels a side, a power of two times 4
    width : channels of the first stage; they double up to eight-fold
    """

    def __init__(self, num_classes: int, image_size: int, width: int) -> None:
        super().__init__()
        self.stem = _unit(3, width, stride=1)
        stages: list[nn.Module] = []
        channels = width
        for i in range(max(1, (image_size // 4).bit_length() - 1)):
            out = width * min(8, 2 << i)
            stages.append(_Block(channels, out))
            channels = out
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, 3, S, S) in [-1, 1]."""
        return self.head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Means of the last channels, (B, F), of images (B, 3, S, S) in [-1, 1]."""
        return self.stages(self.stem(images)).mean(dim=(2, 3))


class _Block(nn.Module):
    """Halve the resolution, then one residual convolution."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.reduce = _unit(channels, out, stride=2)
        self.refine = _unit(out, out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H/2, W/2)."""
        x = self.reduce(x)
        return x + self.refine(x)


def load_classifier(folder: Path, class_names: tuple[str, ...]) -> Classifier:
    """The classifier of a run's folder, in evaluation mode on the CPU.

    Raises
    ------
    ArtifactError
        A file of the run is missing or damaged.
    ConfigError
        It was trained on other classes than ``class_names``, in this order.
    """
    path = folder / CLASSIFIER_FILE
    try:
        config = read_json(folder / "config.json")
        names = parse_json(read_header(path)["classes"])
        with without_memory():
            model = Classifier(len(names), config["image_size"], config["width"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(path, f"holds no classifier ({error})") from error
    require_same_classes("classifier", folder, names, "the images", class_names)
    return fill_module(path, model).eval()


def classifier_accuracy(folder: Path) -> float:
    """Share of the real validation images that the classifier of a run's folder is right about."""
    path = folder / "metrics.json"
    try:
        return float(read_json(path)["accuracy"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(path, f"has no accuracy ({error})") from error


@torch.inference_mode()
def predict(
    model: nn.Module, pixels: NDArray[np.uint8], batch_size: int = 250
) -> NDArray[np.int64]:
    """Most probable class, int64 (N,), of images uint8 (N, S, S, 3)."""
    device = next(model.parameters()).device
    batches = [
        model(to_float(pixels[start : start + batch_size]).to(device)).argmax(1).cpu().numpy()
        for start in range(0, len(pixels), batch_size)
    ]
    return np.concatenate(batches)


class ClassifierFeatures(nn.Module):
    """Features of a classifier, and the logits that follow from them."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, F) and logits (N, C) of images uint8 (N, 3, S, S)."""
        features = self.classifier.features(pixels_to_float(images.permute(0, 2, 3, 1)))
        return features, self.classifier.head(features)


def classifier_extractor(
    classifier: Classifier, device: torch.device, weights_sha256: str
) -> Extractor:
    """Features and logits of a classifier; ``weights_sha256`` is of its file."""
    features = ClassifierFeatures(classifier)
    return Extractor(LABEL, features, device, weights_sha256, has_logits=True)


def _unit(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )
