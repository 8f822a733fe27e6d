from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from masc_core.errors import ConfigError
from masc_core.models.vq import VQConfig, VQModel, to_uint8
from masc_core.weights import load_tokenizer
from tests.training.stages import photographs, tokenizer_config
from training.images import ImageFolder
from training.tokenizer import (
    reconstruct,
    reconstruction_metrics,
    restart_codes,
    to_float,
    train_tokenizer,
)


def test_learns_and_leaves_weights_metrics_and_a_sheet(tmp_path: Path) -> None:
    config = tokenizer_config(
        photographs(tmp_path), ch_mult=(1, 1), epochs=40, restart_codes_every=20
    )
    metrics = train_tokenizer(config)
    log = [json.loads(row) for row in (config.out / "log.jsonl").read_text().splitlines()]
    first = next(row for row in log if row["kind"] == "validation")
    assert metrics["psnr"] > first["psnr"] + 1.5
    assert metrics["psnr"] == max(row["psnr"] for row in log if row["kind"] == "validation")
    model = load_tokenizer(config.out / "tokenizer.safetensors")
    pixels = ImageFolder.scan(config.val_data).read(16).pixels
    again = reconstruction_metrics(model, pixels)
    assert again["psnr"] == pytest.approx(metrics["psnr"], abs=0.05)
    assert again["codebook_usage"] == pytest.approx(metrics["codebook_usage"], abs=1 / 32)
    with Image.open(config.out / "reconstructions.png") as sheet:
        assert sheet.width >= 8 * 16


def test_continues_where_it_stopped(tmp_path: Path) -> None:
    root = photographs(tmp_path)
    whole = tokenizer_config(root, out=tmp_path / "whole")
    train_tokenizer(whole)
    config = tokenizer_config(root)
    calls = 0

    def die(step: int, total: int, text: str) -> None:
        nonlocal calls
        calls += 1
        if step == 5:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train_tokenizer(config, die)
    assert calls == 5
    train_tokenizer(config)
    expected = load_tokenizer(whole.out / "tokenizer.safetensors").state_dict()
    actual = load_tokenizer(config.out / "tokenizer.safetensors").state_dict()
    assert all(torch.equal(actual[key], value) for key, value in expected.items())


def test_image_size_must_fit_the_grid(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="image_size"):
        train_tokenizer(tokenizer_config(photographs(tmp_path), image_size=18))


def test_unused_codes_restart_on_features_of_the_batch() -> None:
    torch.manual_seed(0)
    model = VQModel(VQConfig(num_codes=8, code_dim=4, ch=32, ch_mult=(1,), z_channels=32))
    window = model.quantize.get_buffer("codebook_used")
    window.copy_(torch.arange(len(window)) % 3)
    before = model.quantize.embedding.weight.detach().clone()
    features = torch.randn(2, 4, 5, 5)
    assert restart_codes(model, features) == 5
    after = model.quantize.embedding.weight.detach()
    assert torch.equal(after[:3], before[:3])
    rows = torch.nn.functional.normalize(features.permute(0, 2, 3, 1).reshape(-1, 4))
    nearest = (after[3:, None] - rows).abs().amax(dim=2).min(dim=1).values
    assert nearest.max() < 1e-6


def test_pixels_survive_the_way_to_floats_and_back() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    images = to_float(pixels)
    assert images.shape == (1, 3, 16, 16)
    assert images.min() == -1
    assert images.max() == 1
    error = to_uint8(images).int() - torch.from_numpy(pixels).int()
    assert error.abs().max() <= 1


def test_metrics_agree_with_the_plain_formula() -> None:
    torch.manual_seed(0)
    model = VQModel(VQConfig(num_codes=8, ch=32, ch_mult=(1, 1), z_channels=32)).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    images, codes = reconstruct(model, pixels, batch_size=2)
    psnr = []
    for image, original in zip(images, pixels, strict=True):
        mse = np.mean((image.astype(float) - original.astype(float)) ** 2)
        psnr.append(20 * np.log10(255) - 10 * np.log10(mse))
    metrics = reconstruction_metrics(model, pixels)
    assert metrics["psnr"] == pytest.approx(np.mean(psnr))
    assert metrics["codebook_usage"] == len(set(codes.ravel().tolist())) / 8
