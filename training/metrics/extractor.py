"""The project's classifier as an extractor of features.

Its features are the channel means before the head. A Fréchet distance in them can be had without
anybody's weights; it is no FID, and is named after them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.metrics.fidelity import Extractor
from training.metrics.reconstruction import pixels_to_float
from training.stages.classifier import Classifier

LABEL = "classifier"


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
    module = ClassifierFeatures(classifier)
    return Extractor(LABEL, module, device, weights_sha256, has_logits=True)
