from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from masc_core.errors import ArtifactError, ConfigError
from training.metrics.reference import Reference, Statistics, read_statistics


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
    again = read_statistics(tmp_path / "s.npz")
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
    found = read_statistics(tmp_path / "adm.npz")
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
        read_statistics(tmp_path / "x.npz")


def test_an_array_under_the_name_of_an_archive_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ArtifactError, match="holds no statistics"):
        read_statistics(tmp_path / "x.npz")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"none\.npz"):
        read_statistics(tmp_path / "none.npz")


def test_statistics_of_other_features_have_no_distance() -> None:
    with pytest.raises(ConfigError, match="of 4 features cannot be compared with 5"):
        Statistics.of(features(0)).distance(Statistics.of(features(1)[:, :4]))


def test_one_image_has_no_covariance() -> None:
    with pytest.raises(ConfigError, match="at least two"):
        Statistics.of(torch.zeros(1, 4))
