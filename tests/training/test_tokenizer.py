from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from masc_core.errors import ConfigError
from masc_core.models.vq import VQConfig, VQModel
from masc_core.weights import load_tokenizer
from tests.training.stages import photographs, tokenizer_config
from training.images import ImageFolder
from training.reconstruction import reconstruction_metrics
from training.tokenizer import restart_codes, train_tokenizer


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
