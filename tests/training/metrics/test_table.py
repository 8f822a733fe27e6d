from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from masc_core.bundle.read import Bundle
from tests.tiny_bundle import CLASS_NAMES
from training.metrics.samples import make_images
from training.metrics.table import (
    class_agreement,
    default_params,
    first_images,
    seconds_per_image,
)


class Constant(nn.Module):
    """Says the same class of every image."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.nn.functional.one_hot(torch.tensor(label), 5).float())

    def forward(self, images: Tensor) -> Tensor:
        return self.bias.expand(len(images), -1)


def test_a_judge_who_always_says_the_same_is_right_once_a_class(bundle: Bundle) -> None:
    figures = class_agreement(bundle, Constant(3), images_per_class=3, batch_size=4)
    assert figures["class_agreement"] == pytest.approx(1 / 5)
    assert figures["class_agreement_images"] == 15


def test_entropies_are_the_mean_over_all_images(bundle: Bundle) -> None:
    figures = class_agreement(bundle, Constant(0), images_per_class=2, batch_size=3)
    params_list = [
        replace(default_params(bundle), class_id=label, seed=seed)
        for label in range(5)
        for seed in range(2)
    ]
    expected = np.mean([make_images(bundle, [params])[1] for params in params_list])
    assert figures["entropy_bits"] == pytest.approx(float(expected), rel=1e-6)
    assert figures["entropy_ratio"] == pytest.approx(float(expected) / 4, rel=1e-6)


def test_defaults_are_the_manifests(bundle: Bundle) -> None:
    params = default_params(bundle)
    assert (params.class_id, params.seed, params.cfg_scale, params.decoding) == (
        0,
        0,
        2.0,
        "uniform",
    )


def test_speed_is_a_positive_median(bundle: Bundle) -> None:
    figures = seconds_per_image(bundle, repeats=3)
    assert 0 < figures["seconds_per_image"] < 10
    assert figures["seconds_per_image_threads"] == torch.get_num_threads()


def test_the_sheet_shows_seed_zero_of_every_class(bundle: Bundle, tmp_path: Path) -> None:
    with Image.open(io.BytesIO(first_images(bundle, columns=5, scale=1))) as image:
        sheet = np.asarray(image.convert("RGB"))
    for i in range(len(CLASS_NAMES)):
        pixels, _ = make_images(bundle, [replace(default_params(bundle), class_id=i)])
        assert np.array_equal(sheet[:16, i * 18 : i * 18 + 16], pixels[0])
