from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from masc_core.errors import ConfigError
from tests.tiny_images import make_images
from training.loop.progress import no_report
from training.metrics.fidelity import Extractor
from training.metrics.real_images import open_real
from training.metrics.reference import Statistics

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
        reference = real.seen_by(extractor(label, width), no_report)
        assert reference is not None
        assert reference.features is not None
        assert reference.features.shape == (9, width)
        assert np.array_equal(reference.statistics.mu, reference.features.numpy().mean(0))


def test_statistics_of_all_go_with_features_of_some(tmp_path: Path) -> None:
    whole = adm(tmp_path / "adm.npz")
    one, other = extractor("inception"), extractor("vgg", 3)
    real = open_real(tmp_path / "adm.npz", 8, [one, other])
    reference = real.seen_by(one, no_report)
    assert reference is not None
    assert np.array_equal(reference.statistics.mu, whole.mu)
    assert reference.features is not None
    assert reference.features.shape == (65, 6)
    assert np.array_equal(reference.features[64].numpy(), IMAGES[64].reshape(-1, 3)[:6, 0])
    reference = real.seen_by(other, no_report)
    assert reference is not None
    assert len(reference.statistics.mu) == 3


def test_statistics_serve_the_extractor_that_they_name(tmp_path: Path) -> None:
    judge, second = extractor("classifier"), extractor("classifier", sha256="1")
    statistics = Statistics.of(judge(IMAGES)[0])
    statistics.save(tmp_path / "s.npz", judge.features_name)
    inception = extractor("inception", 9)
    real = open_real(tmp_path / "s.npz", 8, [inception, judge])
    assert real.seen_by(inception, no_report) is None
    reference = real.seen_by(judge, no_report)
    assert reference is not None
    assert reference.features is None
    with pytest.raises(ConfigError, match="features that nothing gives: classifier 0"):
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
        real.seen_by(extractor("inception"), no_report)
