from __future__ import annotations

import numpy as np
import pytest
import torch

from masc_core.images import Pixels
from masc_core.models.vq import VQConfig, VQModel, to_uint8
from masc_core.prior import ClusterMap
from masc_core.sampling.in_cluster import UNIFORM, CodeSampler
from masc_core.sampling.rng import code_bits
from training.metrics.image_quality import EXACT_PSNR, psnr, ssim
from training.metrics.semantic_replacement import ReplacementTest, over_draws, paired_difference

PRIOR = ClusterMap.from_labels([0, 0, 1, 2, 2, 2, 3, 3])
COUNTS = np.array([1, 3, 5, 0, 2, 6, 0, 0])
SEED = 5


def noise(num: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (num, 16, 16, 3), dtype=np.uint8)


def make_test(num_images: int = 5, draws: int = 3) -> ReplacementTest:
    torch.manual_seed(0)
    model = VQModel(VQConfig(num_codes=8, ch=32, ch_mult=(1, 1), z_channels=32)).eval()
    return ReplacementTest(model, noise(num_images), draws=draws, seed=SEED)


def test_measures_what_the_products_own_decoder_draws() -> None:
    test, code_sampler = make_test(), CodeSampler(PRIOR, COUNTS)
    replaced, uniform = test.run(code_sampler, "uniform"), torch.tensor([UNIFORM])
    for draw in range(3):
        for image in range(5):
            seed = torch.tensor([(SEED << 31) + draw * 5 + image])
            codes = [
                int(code_sampler.sample_code(cluster[None], code_bits(seed, position), uniform))
                for position, cluster in enumerate(torch.tensor(PRIOR.encode(test.codes[image])))
            ]
            with torch.inference_mode():
                pixels = to_uint8(test.model.decode_codes(torch.tensor([codes]))).numpy()
            original, own = test.pixels[[image]], test.reconstructions[[image]]
            place = draw, image
            assert replaced.psnr[place] == pytest.approx(psnr(pixels, original)[0], abs=1e-3)
            assert replaced.ssim[place] == pytest.approx(ssim(pixels, original)[0], abs=1e-3)
            assert replaced.psnr_to_reconstruction[place] == pytest.approx(
                psnr(pixels, own)[0], abs=0.1
            )
            assert replaced.ssim_to_reconstruction[place] == pytest.approx(
                ssim(pixels, own)[0], abs=1e-3
            )
            assert replaced.kept[place] == np.mean(codes == test.codes[image])


def test_frequency_decoding_draws_by_the_counts() -> None:
    test = make_test()
    test.codes = np.full((5, 64), 4)  # in a cluster with the counts 0, 2 and 6
    by_count = test.run(CodeSampler(PRIOR, COUNTS), "frequency").kept.mean()
    evenly = test.run(CodeSampler(PRIOR, COUNTS), "uniform").kept.mean()
    assert by_count == pytest.approx(1 / 4, abs=0.05)
    assert evenly == pytest.approx(1 / 3, abs=0.05)


def test_a_code_alone_in_its_cluster_is_replaced_by_itself() -> None:
    test = make_test()
    flat = CodeSampler(ClusterMap.identity(8), COUNTS)
    ceiling = test.nothing_replaced()
    for decoding in ("uniform", "frequency"):
        replaced = test.run(flat, decoding)
        assert (replaced.psnr_to_reconstruction == EXACT_PSNR).all()
        assert (replaced.kept == 1).all()
        assert np.array_equal(replaced.psnr, ceiling.psnr)
        assert np.array_equal(replaced.ssim, ceiling.ssim)
    assert np.array_equal(ceiling.psnr[0], psnr(test.reconstructions, test.pixels))


def test_draws_differ_from_each_other_and_repeat_with_the_seed() -> None:
    code_sampler = CodeSampler(PRIOR)
    seen: list[None] = []
    first = make_test().run(code_sampler, "uniform", lambda: seen.append(None))
    assert len(seen) == 3
    assert not np.array_equal(first.psnr[0], first.psnr[1])
    again = make_test().run(code_sampler, "uniform")
    assert np.array_equal(first.psnr, again.psnr)


def test_images_of_more_than_one_batch_keep_their_order() -> None:
    test = make_test(num_images=70, draws=2)
    assert len(test.codes) == len(test.reconstructions) == 70
    with torch.inference_mode():
        last = to_uint8(test.model.decode_codes(torch.from_numpy(test.codes[69:]))).numpy()
    levels = np.abs(last[0].astype(int) - test.reconstructions[69].astype(int))
    assert levels.max() <= 1  # a batch of another size may round the other way


def test_the_error_of_the_draws_is_what_repeated_draws_show() -> None:
    generator = np.random.default_rng(0)
    images = generator.normal(0, 10, 50)  # how different the images are does not matter
    means = []
    errors = []
    for _ in range(2000):
        values = images + generator.normal(0, 1, (3, 50))
        estimate = over_draws(values)
        means.append(estimate.mean)
        errors.append(estimate.standard_error)
    assert np.std(means) == pytest.approx(1 / np.sqrt(150), rel=0.05)
    assert np.mean(errors) == pytest.approx(1 / np.sqrt(150), rel=0.05)


def test_paired_differences_cancel_what_the_images_are_like() -> None:
    images = np.random.default_rng(0).normal(0, 10, 4)
    values = images + np.array([[1.0, 2, 3, 4], [3.0, 4, 5, 6]])
    estimate = paired_difference(values, np.stack([images, images]))
    assert estimate.mean == pytest.approx(3.5)
    assert estimate.standard_error == pytest.approx(np.std([2, 3, 4, 5], ddof=1) / 2)
