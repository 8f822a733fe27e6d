from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from masc_core.errors import ArtifactError, ConfigError
from masc_core.progress import no_progress
from tests.tiny_images import make_images
from tests.training.stage_configs import power_cut
from training.metrics.fidelity import Extractor
from training.metrics.partial_results import PartialResults
from training.metrics.reference import (
    RealImages,
    RealStatistics,
    Reference,
    Statistics,
    open_real,
)


def features(seed: int) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(60, 5)) @ generator.normal(size=(5, 5)) + seed
    return torch.from_numpy(mixed.astype(np.float32))


def test_distance_against_the_formula() -> None:
    a, b = features(0), features(1)
    m, n = a.numpy().mean(0), b.numpy().mean(0)
    s, t = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    expected = ((m - n) ** 2).sum() + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)
    assert Statistics.of(a).distance(Statistics.of(b)) == pytest.approx(expected, rel=1e-4)
    assert Statistics.of(a).distance(Statistics.of(a)) == pytest.approx(0, abs=1e-4)


def test_statistics_go_to_a_file_and_back(tmp_path: Path) -> None:
    statistics = Reference.of(features(0)).statistics
    statistics.save(tmp_path / "s.npz", "classifier abc")
    again = RealStatistics.open(tmp_path / "s.npz")
    assert again.images is None
    assert again.features_name == "classifier abc"
    assert np.array_equal(again.statistics.mu, statistics.mu)
    assert np.array_equal(again.statistics.sigma, statistics.sigma)


def test_the_adm_evaluators_file_has_images_and_other_types(tmp_path: Path) -> None:
    statistics = Statistics.of(features(0))
    images = np.zeros((3, 4, 4, 3), np.uint8)
    np.savez(
        tmp_path / "adm.npz",
        arr_0=images,
        mu=statistics.mu.astype(np.float64),
        sigma=statistics.sigma.astype(np.float32),
        mu_s=np.zeros(2),
    )
    found = RealStatistics.open(tmp_path / "adm.npz")
    assert found.features_name == "inception"
    assert found.images is not None
    assert found.images.shape == images.shape
    assert found.statistics.distance(statistics) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": np.zeros(3)},
        {"mu": np.zeros(3), "sigma": np.zeros((2, 2))},
        {"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)},
        {"mu": np.full(2, np.inf), "sigma": np.eye(2)},
        {"mu": np.array(["a", "b"]), "sigma": np.eye(2)},
        {"mu": np.zeros(2), "sigma": np.eye(2), "arr_0": np.zeros((2, 4))},
        {"mu": np.array([{}]), "sigma": np.eye(1)},
    ],
)
def test_other_files_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "x.npz", allow_pickle=True, **arrays)
    with pytest.raises(ArtifactError, match="holds"):
        RealStatistics.open(tmp_path / "x.npz")


def test_an_array_under_the_name_of_an_archive_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ArtifactError, match="holds no statistics"):
        RealStatistics.open(tmp_path / "x.npz")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.npz"):
        RealStatistics.open(tmp_path / "none.npz")


def test_statistics_of_other_features_have_no_distance() -> None:
    with pytest.raises(ConfigError, match="of 4 features cannot be compared with 5"):
        Statistics.of(features(0)).distance(Statistics.of(features(1)[:, :4]))


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(ConfigError, match="at least two"):
        Statistics.of(torch.zeros(1, 4))


IMAGES = np.random.default_rng(0).integers(0, 256, (130, 8, 8, 3), dtype=np.uint8)


class Corner(nn.Module):
    """The first values of the first channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (images[:, 0].flatten(1)[:, : self.width],)


def extractor(label: str, width: int = 6, sha256: str = "0") -> Extractor:
    return Extractor(label, Corner(width), torch.device("cpu"), sha256, has_logits=False)


def adm(path: Path, width: int = 6) -> Statistics:
    """A file with the statistics of all images, and the first half of them."""
    features = torch.from_numpy(IMAGES[..., 0].reshape(len(IMAGES), -1)[:, :width])
    whole = Statistics.of(features.float())
    np.savez(path, arr_0=IMAGES[:65], mu=whole.mu, sigma=whole.sigma)
    return whole


def test_images_serve_every_extractor(tmp_path: Path) -> None:
    make_images(tmp_path, per_class=3, seed=0)
    real = open_real(tmp_path, 8, [])
    for label, width in (("inception", 6), ("classifier", 4)):
        reference = real.extract(extractor(label, width), no_progress)
        assert reference is not None
        assert reference.features is not None
        assert reference.features.shape == (9, width)
        assert np.array_equal(reference.statistics.mu, reference.features.numpy().mean(0))


def test_statistics_of_all_go_with_features_of_some(tmp_path: Path) -> None:
    whole = adm(tmp_path / "adm.npz")
    one, other = extractor("inception"), extractor("vgg", 3)
    real = open_real(tmp_path / "adm.npz", 8, [one, other])
    reference = real.extract(one, no_progress)
    assert reference is not None
    assert np.array_equal(reference.statistics.mu, whole.mu)
    assert reference.features is not None
    assert reference.features.shape == (65, 6)
    assert np.array_equal(reference.features[64].numpy(), IMAGES[64].reshape(-1, 3)[:6, 0])
    reference = real.extract(other, no_progress)
    assert reference is not None
    assert len(reference.statistics.mu) == 3


MANY = np.random.default_rng(1).integers(0, 256, (12_345, 2, 2, 3), dtype=np.uint8)


def many(path: Path) -> RealImages | RealStatistics:
    """More images than are kept of their features."""
    np.savez(path, arr_0=MANY, mu=np.zeros(1), sigma=np.eye(1), features="of something else")
    return open_real(path, 2, [])


def test_of_many_images_all_count_and_some_are_kept(tmp_path: Path) -> None:
    reference = many(tmp_path / "r.npz").extract(extractor("inception", 4), no_progress)
    whole = MANY[..., 0].reshape(len(MANY), 4).astype(np.float64)
    assert reference is not None
    assert np.allclose(reference.statistics.mu, whole.mean(0), rtol=1e-6)
    assert np.allclose(reference.statistics.sigma, np.cov(whole, rowvar=False), rtol=1e-9)
    assert reference.features is not None
    assert len(reference.features) == 10_000
    assert np.array_equal(reference.features[[0, -1]], whole[[0, -1]])


def test_many_images_are_gone_on_with(tmp_path: Path) -> None:
    real, one = many(tmp_path / "r.npz"), extractor("inception", 4)
    whole = real.extract(one, no_progress)
    with power_cut(11_000) as report:
        real.extract(one, report, PartialResults(tmp_path, {}))
    reported: list[int] = []
    again = real.extract(one, lambda done, *_: reported.append(done), PartialResults(tmp_path, {}))
    assert min(reported) == 10_100
    assert whole is not None
    assert again is not None
    assert np.array_equal(whole.statistics.sigma, again.statistics.sigma)
    assert np.array_equal(whole.statistics.mu, again.statistics.mu)
    assert whole.features is not None
    assert again.features is not None
    assert torch.equal(whole.features, again.features)


def test_statistics_serve_the_extractor_that_they_name(tmp_path: Path) -> None:
    classifier, second = extractor("classifier"), extractor("classifier", sha256="1")
    statistics = Statistics.of(classifier(IMAGES)[0])
    statistics.save(tmp_path / "s.npz", classifier.features_name)
    inception = extractor("inception", 9)
    real = open_real(tmp_path / "s.npz", 8, [inception, classifier])
    assert real.extract(inception, no_progress) is None
    reference = real.extract(classifier, no_progress)
    assert reference is not None
    assert reference.features is None
    with pytest.raises(ConfigError, match="statistics of classifier 0"):
        open_real(tmp_path / "s.npz", 8, [second])


def test_statistics_of_another_size_are_refused(tmp_path: Path) -> None:
    adm(tmp_path / "adm.npz")
    with pytest.raises(ConfigError, match="has 6 features, inception has 5"):
        open_real(tmp_path / "adm.npz", 8, [extractor("inception", 5)])


def test_three_images_are_too_few(tmp_path: Path) -> None:
    make_images(tmp_path / "images", per_class=1, seed=0)
    with pytest.raises(ConfigError, match="at least 4 images, and has 3"):
        open_real(tmp_path / "images", 8, [])
    make_images(tmp_path / "broken", per_class=2, seed=0)
    for path in sorted((tmp_path / "broken").rglob("*.png"))[:3]:
        path.write_bytes(b"no image")
    real = open_real(tmp_path / "broken", 8, [])
    with pytest.raises(ConfigError, match="at least 4 images, and has 3"):
        real.extract(extractor("inception"), no_progress)
