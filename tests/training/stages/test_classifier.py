from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from masc_core.errors import ConfigError
from tests.tiny_images import CLASSES, make_images
from tests.training.rank_processes import all_well
from training.data.images import open_images
from training.loop.batches import item_random_bits
from training.metrics.classifier import Classifier, load_classifier, predict
from training.stages.classifier import augment, train_classifier
from training.stages.configs import ClassifierConfig


def test_tells_bars_from_discs(tmp_path: Path) -> None:
    make_images(tmp_path / "train", per_class=40, seed=0)
    make_images(tmp_path / "val", per_class=10, seed=1)
    config = ClassifierConfig.model_validate(
        {
            "out": tmp_path / "run",
            "data": tmp_path / "train",
            "val_data": tmp_path / "val",
            "image_size": 16,
            "width": 8,
            "epochs": 15,
            "batch_size": 20,
            "lr": 5e-3,
        }
    )
    train_classifier(config)
    val = open_images(tmp_path / "val").read(16)
    with pytest.raises(ConfigError, match=r"classifier: .* of the images: it has them in an"):
        load_classifier(config.out, ("bar", "stripes", "disc"))
    extra = tmp_path / "val" / "bar" / "new.png"
    shutil.copy(tmp_path / "val" / "bar" / "000.png", extra)
    with pytest.raises(ConfigError, match=r"another; inputs\.val_data\.images\.bar was 10, is 11;"):
        train_classifier(config)
    extra.unlink()
    (tmp_path / "val" / "bar").rename(tmp_path / "val" / "zebra")
    with pytest.raises(ConfigError, match=r"val_data: .* lacks 'bar', and has besides 'zebra'"):
        train_classifier(config)
    accuracy = (predict(load_classifier(config.out, CLASSES), val.pixels) == val.labels).mean()
    assert accuracy > 0.8


def train_and_count(config: ClassifierConfig) -> None:
    seen: list[int] = []

    def counted(model: nn.Module, pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        seen.append(len(pixels))
        return predict(model, pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.stages.classifier.predict", counted)
        train_classifier(config)
    (config.out / f"seen-{os.environ['RANK']}.json").write_text(json.dumps(seen))


def test_ranks_share_the_validation_and_measure_the_weights_that_are_kept(tmp_path: Path) -> None:
    make_images(tmp_path / "train", per_class=8, seed=0)
    make_images(tmp_path / "val", per_class=5, seed=1)
    values = {"data": tmp_path / "train", "val_data": tmp_path / "val", "image_size": 16}
    values |= {"out": tmp_path / "run", "width": 8, "epochs": 3, "batch_size": 12, "lr": 5e-3}
    config = ClassifierConfig.model_validate(values)
    all_well(2, train_and_count, config)
    shares = [json.loads((config.out / f"seen-{rank}.json").read_text()) for rank in (0, 1)]
    assert shares == [[8] * 3, [7] * 3]
    val = open_images(tmp_path / "val").read(16)
    kept = predict(load_classifier(config.out, CLASSES), val.pixels) == val.labels
    metrics = json.loads((config.out / "metrics.json").read_text())
    assert metrics["accuracy"] == kept.mean()


def test_ends_at_four_by_four_whatever_the_size() -> None:
    for size in (8, 32, 64):
        model = Classifier(5, size, 8).eval()
        features = model.stages(model.stem(torch.zeros(2, 3, size, size)))
        assert features.shape[2:] == (4, 4)
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 5)


def test_predictions_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    model = Classifier(5, 16, 8).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    assert np.array_equal(predict(model, pixels, batch_size=3), predict(model, pixels))


def test_augmentation_moves_and_mirrors_but_invents_nothing() -> None:
    images = np.broadcast_to(np.arange(16, dtype=np.uint8)[:, None], (64, 16, 16, 3))
    out = augment(images, item_random_bits(0, 0, 64))
    assert out.shape == images.shape
    rows = {tuple(row.tolist()) for row in out[:, 0, :, 0]}
    assert len(rows) == 10  # five shifts, mirrored or not
    assert all(set(row) <= set(range(16)) for row in rows)


def test_one_class_is_refused(tmp_path: Path) -> None:
    make_images(tmp_path / "all", per_class=2)
    (tmp_path / "one").mkdir()
    (tmp_path / "all" / "bar").rename(tmp_path / "one" / "bar")
    values = {"out": tmp_path / "run", "data": tmp_path / "one", "val_data": tmp_path / "one"}
    with pytest.raises(ConfigError, match=r"data: .*one class only, 'bar'"):
        train_classifier(ClassifierConfig.model_validate(values))
