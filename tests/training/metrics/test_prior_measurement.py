from __future__ import annotations

import numpy as np
import pytest
import torch

from masc_core.models.vq import VQConfig, VQModel
from masc_core.prior import ClusterMap
from masc_core.sampling.in_cluster import CodeSampler
from training.metrics.cluster_bits import count_pairs
from training.metrics.cluster_statistics import cluster_distances, cluster_sizes
from training.metrics.image_quality import EXACT_PSNR, psnr
from training.metrics.prior_measurement import PriorMeasurement
from training.metrics.semantic_replacement import ReplacementTest, over_draws

GENERATOR = np.random.default_rng(0)
PIXELS = GENERATOR.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
FITTED = GENERATOR.choice(8, (20, 64), p=[0.4, 0.1, 0.1, 0.1, 0.05, 0.05, 0.1, 0.1])
COARSE = ClusterMap.from_labels([0, 0, 0, 0, 1, 1, 1, 1])
OTHER = ClusterMap.from_labels([0, 1, 0, 1, 0, 1, 0, 1])
FINE = ClusterMap.from_labels([0, 0, 1, 1, 2, 2, 3, 3])


@pytest.fixture(scope="module")
def test() -> ReplacementTest:
    torch.manual_seed(0)
    model = VQModel(VQConfig(num_codes=8, ch=32, ch_mult=(1, 1), z_channels=32)).eval()
    return ReplacementTest(model, PIXELS, draws=2, seed=0)


@pytest.fixture
def measurement(test: ReplacementTest) -> PriorMeasurement:
    rows = test.model.quantize.codebook().detach().numpy().astype(np.float64)
    return PriorMeasurement(rows, count_pairs(FITTED, 8), test)


def test_the_flat_vocabulary_is_the_tokenizer_itself(
    test: ReplacementTest, measurement: PriorMeasurement
) -> None:
    flat = measurement.flat()
    assert (flat.method, flat.num_clusters, flat.file) == ("flat", 8, "")
    assert flat.sizes.largest == 1
    assert flat.distances.uniform == 0
    for quality in flat.quality.values():
        expected = psnr(test.reconstructions, PIXELS).mean()
        assert quality.psnr.mean == pytest.approx(expected)
        assert quality.psnr.standard_error == 0
        assert quality.psnr_to_reconstruction.mean == pytest.approx(EXACT_PSNR)
        assert quality.kept.mean == 1
        assert quality.psnr_gain is None


def test_gains_are_over_the_first_prior_of_the_same_size(measurement: PriorMeasurement) -> None:
    first = measurement.measure("first", COARSE, "first.npz")
    second = measurement.measure("second", OTHER, "second.npz")
    alone = measurement.measure("alone", FINE, "alone.npz")
    for decoding in ("uniform", "frequency"):
        assert first.quality[decoding].psnr_gain is None
        assert alone.quality[decoding].psnr_gain is None
        gain = second.quality[decoding].psnr_gain
        assert gain is not None
        difference = second.quality[decoding].psnr.mean - first.quality[decoding].psnr.mean
        assert gain.mean == pytest.approx(difference)
    assert first.bits.uniform == 2
    assert second.file == "second.npz"


def test_draws_by_the_fitted_counts_and_weighs_by_the_measured_images(
    test: ReplacementTest, measurement: PriorMeasurement
) -> None:
    result = measurement.measure("coarse", COARSE, "")
    counts, usage = (np.bincount(codes.ravel(), minlength=8) for codes in (FITTED, test.codes))
    rows = test.model.quantize.codebook().detach().numpy().astype(np.float64)
    assert result.sizes == cluster_sizes(COARSE, usage)
    assert result.distances == cluster_distances(rows, COARSE, usage, counts)
    replaced = test.run(CodeSampler(COARSE, counts), "frequency")
    assert result.quality["frequency"].psnr == over_draws(replaced.psnr)
    assert result.quality["frequency"].kept == over_draws(replaced.kept)


def test_reports_every_draw_of_every_decoding(measurement: PriorMeasurement) -> None:
    seen: list[None] = []
    measurement.measure("coarse", COARSE, "", lambda: seen.append(None))
    assert len(seen) == 4
