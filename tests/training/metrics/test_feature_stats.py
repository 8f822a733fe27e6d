from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from training.metrics.classifier import Classifier, ClassifierFeatures, classifier_extractor
from training.metrics.feature_stats import FeatureStats, compare, extract
from training.metrics.fidelity import torch_fidelity
from training.metrics.reconstruction import to_float
from training.metrics.reference import Reference, Statistics
from training.metrics.samples import Samples

GENERATED, REAL = (
    np.random.default_rng(i).integers(40 * i, 256, (30 + 10 * i, 16, 16, 3), dtype=np.uint8)
    for i in range(2)
)


class Pixels(Dataset[Tensor]):
    """Images as torch-fidelity takes them."""

    def __init__(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self.pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index]


def registered_extractor() -> str:
    """Name under which torch-fidelity finds the classifier's features."""
    base: Any = torch_fidelity("feature_extractor_base").FeatureExtractorBase

    class Registered(base):  # type: ignore[misc]
        def __init__(
            self, name: str, features_list: list[str], *, classifier: Classifier, **_: object
        ) -> None:
            super().__init__(name, features_list)
            self.features = ClassifierFeatures(classifier)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            found = dict(zip(("features", "logits"), self.features(images), strict=True))
            return tuple(found[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> Tensor:
            return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

    name = "masc-classifier"
    torch_fidelity().register_feature_extractor(name, Registered)
    return name


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(5, 16, 8).eval()


def test_metrics_are_those_of_torch_fidelity_from_the_same_images(classifier: Classifier) -> None:
    extractor = classifier_extractor(classifier, torch.device("cpu"), "0")
    stats = FeatureStats((1, 1))
    for start in range(0, len(GENERATED), 7):
        pixels = GENERATED[start : start + 7]
        zeros = np.zeros(len(pixels), np.int64)
        batch = Samples(pixels, zeros, np.zeros((len(pixels), 1), np.float32))
        stats.add(extract(batch, [extractor]))
    features, logits = stats.of(extractor.label)
    found = compare("inception", features, logits, Reference.of(extractor(REAL)[0]))
    expected = torch_fidelity().calculate_metrics(
        input1=Pixels(GENERATED), input2=Pixels(REAL),
        feature_extractor=registered_extractor(), classifier=classifier,
        isc=True, fid=True, kid=True, prc=True, kid_subset_size=30,
        cuda=False, cache=False, verbose=False, batch_size=8, save_cpu_ram=True,
    )  # fmt: skip
    names = {"precision": "precision_inception", "recall": "recall_inception"}
    del expected["f_score"]
    assert found == pytest.approx(
        {names.get(name, name): value for name, value in expected.items()}, rel=1e-4, abs=1e-6
    )


def test_the_extractor_gives_what_the_classifier_sees(classifier: Classifier) -> None:
    features, logits = classifier_extractor(classifier, torch.device("cpu"), "0")(GENERATED)
    with torch.inference_mode():
        floats = to_float(GENERATED)
        assert torch.allclose(features, classifier.features(floats))
        assert logits is not None
        assert torch.allclose(logits, classifier(floats), atol=1e-6)


def test_agreement_counts_the_images_that_the_judge_knows(classifier: Classifier) -> None:
    extractor = classifier_extractor(classifier, torch.device("cpu"), "0")
    logits = extractor(GENERATED)[1]
    assert logits is not None
    labels = logits.argmax(1).numpy().copy()
    labels[:4] = (labels[:4] + 1) % 5
    stats = FeatureStats((1, 2))
    entropies = np.arange(2 * len(labels), dtype=np.float32).reshape(-1, 1, 2)
    stats.add(extract(Samples(GENERATED, labels, entropies), [extractor]))
    assert (stats.count, stats.agreed) == (30, {"classifier": 26})
    assert np.array_equal(stats.entropies, entropies.sum(0))


def test_features_decide_what_is_measured(classifier: Classifier) -> None:
    extractor = classifier_extractor(classifier, torch.device("cpu"), "0")
    features, logits = extractor(GENERATED)
    real = Reference.of(extractor(REAL)[0])
    shares = {"precision_vgg", "recall_vgg"}
    assert compare("vgg", features, None, real).keys() == shares
    statistics = Reference(real.statistics)
    assert compare("vgg", features, None, statistics) == {}
    assert compare("classifier", features, logits, statistics).keys() == {
        "frechet_classifier_distance"
    }
    assert compare("inception", features, logits, None).keys() == {
        "inception_score_mean",
        "inception_score_std",
    }


def test_the_error_of_a_distance_is_its_deviation_between_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = Reference(Statistics.of(torch.randn(2000, 3, generator=generator)), None)

    def compared(resamples: int) -> dict[str, float]:
        features = torch.randn(300, 3, generator=generator) + 0.5
        return compare("classifier", features, None, reference, resamples)

    name = "frechet_classifier_distance"
    assert compared(0).keys() == {name}
    deviation = np.std([compared(0)[name] for _ in range(200)])
    assert compared(100)[f"{name}_error"] == pytest.approx(deviation, rel=0.3)


@pytest.mark.parametrize("count", [12, 40])  # fewer images than features, and more
def test_the_error_of_a_distance_is_of_torch_fidelitys_distances(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    features, real = (torch.randn(n, 20, generator=generator) for n in (count, 60))
    reference, resamples = Reference.of(real), 6
    drawn = torch.Generator().manual_seed(0)
    distances = [
        Statistics.of(features[torch.randint(count, (count,), generator=drawn)]).distance(
            reference.statistics
        )
        for _ in range(resamples)
    ]
    found = compare("classifier", features, None, reference, resamples)
    assert found["frechet_classifier_distance_error"] == pytest.approx(
        np.std(distances, ddof=1), rel=1e-4
    )
