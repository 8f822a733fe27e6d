from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from masc_core.bundle.read import Bundle, load_bundle
from masc_core.models.gpt import GPT
from masc_core.models.vq import VQConfig, VQModel
from server.codebook_view.thumbnails import cut_thumbnails
from tests.tiny_bundle import CLASS_NAMES, save_bundle, tiny_card, tiny_parts
from training.metrics.bundle_metrics import (
    class_agreement,
    codebook_files,
    default_params,
    first_images,
    seconds_per_image,
)
from training.metrics.samples import make_images


class Constant(nn.Module):
    """Says the same class of every image."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.nn.functional.one_hot(torch.tensor(label), 5).float())

    def forward(self, images: Tensor) -> Tensor:
        return self.bias.expand(len(images), -1)


def test_agreement_and_entropies_are_means_over_all_images(bundle: Bundle) -> None:
    metrics = class_agreement(bundle, Constant(3), images_per_class=2, batch_size=3)
    assert metrics["class_agreement"] == pytest.approx(1 / 5)  # of one class in five
    assert metrics["class_agreement_images"] == 10
    images = [
        replace(default_params(bundle), class_id=label, seed=seed)
        for label in range(5)
        for seed in range(2)
    ]
    expected = np.mean([make_images(bundle, [image])[1] for image in images])
    assert metrics["entropy_bits"] == pytest.approx(float(expected), rel=1e-6)
    assert metrics["entropy_ratio"] == pytest.approx(float(expected) / 4, rel=1e-6)


def test_defaults_are_the_manifests(bundle: Bundle) -> None:
    params = default_params(bundle)
    assert (params.class_id, params.seed, params.cfg_scale, params.decoding) == (
        0,
        0,
        2.0,
        "uniform",
    )


def test_speed_is_a_positive_median(bundle: Bundle) -> None:
    metrics = seconds_per_image(bundle, repeats=3)
    assert 0 < metrics["seconds_per_image"] < 10
    assert metrics["seconds_per_image_threads"] == torch.get_num_threads()


@pytest.mark.parametrize("levels", [3, 6], ids=["16 pixels", "128 pixels"])
def test_the_sheet_of_more_than_a_hundred_classes_gives_each_its_thumbnail(
    tmp_path: Path, levels: int
) -> None:
    sizes = VQConfig(32, 4, ch=32, ch_mult=(1,) * levels, num_res_blocks=1, z_channels=32)
    parts = tiny_parts()
    names = tuple(f"class {i}" for i in range(123))
    model = GPT(replace(parts.transformer.config, num_classes=len(names)))
    model.load_state_dict(parts.transformer.state_dict() | {
        name: value.repeat(21, 1)[: len(names) + 1]
        for name, value in parts.transformer.state_dict().items()
        if name.startswith("cls_embedding")
    })  # fmt: skip
    card = tiny_card().model_copy(update={"class_names": names})
    save_bundle(tmp_path / "1", card, replace(parts, transformer=model, tokenizer=VQModel(sizes)))
    bundle = load_bundle(tmp_path / "1")
    sheet = first_images(bundle, num_images=1000)
    assert sheet is not None
    side = min(64, bundle.manifest.image_size)
    with Image.open(io.BytesIO(sheet)) as image:
        assert image.size == (10 * (side + 2) - 2, 13 * (side + 16) - 2)
        left, top = 2 * (side + 2), 12 * (side + 16)
        last = np.asarray(image.crop((left, top, left + side, top + side)))
    assert len(cut_thumbnails(sheet, len(names))) == len(names)
    pixels, _ = make_images(bundle, [replace(default_params(bundle), class_id=122)])
    expected = np.asarray(Image.fromarray(pixels[0]).resize((side, side), Image.Resampling.BOX))
    assert np.array_equal(last, expected)


def test_no_images_are_no_sheet(bundle: Bundle) -> None:
    assert first_images(bundle, num_images=0) is None
    assert codebook_files(bundle.tokenizer, bundle, 0) is None


def test_the_sheet_shows_seed_zero_of_every_class(bundle: Bundle, tmp_path: Path) -> None:
    png = first_images(bundle)
    assert png is not None
    with Image.open(io.BytesIO(png)) as image:
        sheet = np.asarray(image.convert("RGB"))
    for i in range(len(CLASS_NAMES)):
        pixels, _ = make_images(bundle, [replace(default_params(bundle), class_id=i)])
        assert np.array_equal(sheet[:48:3, i * 50 : i * 50 + 48 : 3], pixels[0])
