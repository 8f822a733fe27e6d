"""The project's classifier as a feature extractor of torch-fidelity.

Its features are the channel means before the head. A Fréchet distance in them can be had without
anybody's weights; it is no FID, and is named after them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from training.evaluation.classifier import Classifier
from training.evaluation.fidelity import Extractor, create, torch_fidelity
from training.tokenizer.reconstruction import pixels_to_float

NAME = "masc-classifier"
LABEL = "classifier"


def classifier_extractor(
    classifier: Classifier, device: torch.device, weights_sha256: str
) -> Extractor:
    """Features and logits of a classifier; ``weights_sha256`` is of its file."""
    _register()
    module = create(NAME, ["features", "logits"], classifier=classifier)
    return Extractor(LABEL, module, device, weights_sha256, has_logits=True)


def _register() -> None:
    registry = torch_fidelity("registry").FEATURE_EXTRACTORS_REGISTRY
    if NAME not in registry:
        torch_fidelity().register_feature_extractor(NAME, _extractor_class())


def _extractor_class() -> type[Any]:
    base: Any = torch_fidelity("feature_extractor_base").FeatureExtractorBase

    class ClassifierFeatures(base):  # type: ignore[misc]
        """What torch-fidelity asks of an extractor."""

        def __init__(
            self, name: str, features_list: list[str], *, classifier: Classifier, **_: object
        ) -> None:
            super().__init__(name, features_list)
            self.classifier = classifier

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            """Of images uint8 (N, 3, S, S)."""
            floats = pixels_to_float(images.permute(0, 2, 3, 1))
            features = self.classifier.features(floats)
            found = {"features": features, "logits": self.classifier.head(features)}
            return tuple(found[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            """Names of what `forward` can give."""
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            """What a metric is computed on."""
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            """Whether torch.compile may be used."""
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> Tensor:
            """Images to compile with."""
            return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

    return ClassifierFeatures
