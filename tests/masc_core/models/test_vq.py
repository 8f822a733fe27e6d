from __future__ import annotations

import pytest
import torch

from masc_core.errors import ConfigError
from masc_core.io.tensors import without_memory
from masc_core.models.vq import (
    USAGE_WINDOW,
    VQ_SIZES,
    VectorQuantizer,
    VQConfig,
    VQModel,
    squared_distances,
    to_uint8,
)
from tests.golden_files import assert_close, load_golden, load_golden_json

GOLDEN_SIZES = {
    "vq16": VQConfig(num_codes=64, ch=32, ch_mult=(1, 1, 1, 1, 2), z_channels=32),
    "vq8": VQConfig(num_codes=64, ch=32, ch_mult=(1, 1, 1, 2), z_channels=32),
}
TRAIN_LOSSES = {
    "vq16": (0.05885922163724899, 0.014714805409312248, 0.375),
    "vq8": (0.06011573225259781, 0.015028933063149452, 0.265625),
}


def golden_model(case: str) -> VQModel:
    model = VQModel(GOLDEN_SIZES[case])
    model.load_state_dict(load_golden(f"{case}/weights.safetensors"))
    return model.eval()


@pytest.mark.parametrize("case", ["vq16", "vq8"])
def test_reproduces_upstream(case: str) -> None:
    model, io = golden_model(case), load_golden(f"{case}/io.safetensors")
    with torch.no_grad():
        encoded = model.encoder(io["image"])
        features = model.features(io["image"])
        reconstruction, quantized = model(io["image"])
    assert_close(encoded, io["encoder_out"], atol=2e-4, rtol=1e-3)
    assert_close(features, io["pre_quant"], atol=2e-4, rtol=1e-3)
    assert torch.equal(quantized.codes.flatten(), io["indices"])
    assert_close(quantized.quant, io["quant"], atol=1e-5, rtol=1e-4)
    assert_close(reconstruction, io["recon"], atol=5e-4, rtol=1e-3)
    assert quantized.loss == 0
    assert not quantized.parts


@pytest.mark.parametrize("case", ["vq16", "vq8"])
def test_decodes_codes_as_upstream(case: str) -> None:
    model, io = golden_model(case), load_golden(f"{case}/io.safetensors")
    codes = io["codes"].view(2, 16)
    with torch.no_grad():
        latent = model.quantize.lookup(codes.view(2, 4, 4))
        images = model.decode_codes(codes)
        again = model.decode_codes(io["indices"].view(2, 16))
    assert_close(latent, io["codes_latent"], atol=1e-6, rtol=1e-6)
    assert_close(images, io["codes_image"], atol=5e-4, rtol=1e-3)
    assert_close(again, io["recon_from_indices"], atol=5e-4, rtol=1e-3)
    levels = to_uint8(images).permute(0, 3, 1, 2).int()
    assert (levels - io["codes_image_uint8"].int()).abs().max() <= 1


@pytest.mark.parametrize("case", ["vq16", "vq8"])
def test_training_losses_and_usage(case: str) -> None:
    model, io = golden_model(case).train(), load_golden(f"{case}/io.safetensors")
    _, quantized = model(io["image"])
    codebook, commitment, usage = TRAIN_LOSSES[case]
    assert quantized.parts["codebook"].item() == pytest.approx(codebook, rel=1e-4, abs=1e-5)
    assert quantized.parts["commitment"].item() == pytest.approx(commitment, rel=1e-4, abs=1e-5)
    assert model.quantize.usage() == usage


@pytest.mark.parametrize(
    ("name", "total", "encoder", "decoder"),
    [
        ("VQ-16", 71_883_403, 29_298_176, 42_449_795),
        ("VQ-8", 70_109_835, 28_559_232, 41_415_171),
    ],
)
def test_full_sizes_have_upstreams_keys(name: str, total: int, encoder: int, decoder: int) -> None:
    with without_memory():
        model = VQModel(VQConfig.named(name))
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == load_golden_json(f"shapes/llamagen_{name}.json")
    assert sum(p.numel() for p in model.parameters()) == total
    assert sum(p.numel() for p in model.encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.decoder.parameters()) == decoder


@pytest.mark.parametrize("name", list(VQ_SIZES))
def test_factor_is_what_the_grid_shows(name: str) -> None:
    config = VQConfig.named(name, num_codes=8)
    with torch.device("meta"):
        features = VQModel(config).features(torch.empty(1, 3, 32, 32))
    assert features.shape == (1, config.code_dim, 32 // config.factor, 32 // config.factor)


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_codes": 1},
        {"code_dim": 0},
        {"ch": 48},
        {"ch_mult": ()},
        {"num_res_blocks": 0},
        {"dropout": 1.0},
    ],
)
def test_refuses_impossible_sizes(sizes: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        VQConfig(**sizes)  # type: ignore[arg-type]


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="VQ-16"):
        VQConfig.named("VQ-17")


def test_levels_are_upstreams() -> None:
    golden = load_golden("eval/images.safetensors")
    values = golden["dec.float"].view(1, 1, 1, -1).expand(1, 3, 1, -1)
    levels = to_uint8(values)
    assert levels.dtype == torch.uint8
    for channel in range(3):
        assert torch.equal(levels[0, 0, :, channel], golden["dec.uint8"])


def golden_quantizer(*, l2_norm: bool) -> VectorQuantizer:
    quantizer = VectorQuantizer(24, 4, beta=0.25, entropy_ratio=0.1, l2_norm=l2_norm)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(load_golden("vq_quantizer/io.safetensors")["codebook"])
    return quantizer


@pytest.mark.parametrize(("case", "usage"), [("l2", 0.625), ("raw", 0.5416666666666666)])
def test_reproduces_upstream_in_training(case: str, usage: float) -> None:
    io = load_golden("vq_quantizer/io.safetensors")
    quantizer = golden_quantizer(l2_norm=case == "l2").train()
    z = io["z"].clone().requires_grad_()
    out = quantizer(z)
    assert torch.equal(out.codes.flatten(), io[f"{case}.indices"])
    assert_close(out.quant, io[f"{case}.z_q"], atol=1e-5, rtol=1e-4)
    for part, name in [("codebook", "vq"), ("commitment", "commit"), ("entropy", "entropy")]:
        assert_close(out.parts[part], io[f"{case}.{name}_loss"], atol=1e-5, rtol=1e-4)
    (0.01 * out.quant.square().sum() + out.loss).backward()
    assert z.grad is not None
    assert quantizer.embedding.weight.grad is not None
    assert_close(z.grad, io[f"{case}.grad_z"], atol=1e-4, rtol=1e-2)
    expected = io[f"{case}.grad_codebook"]
    assert_close(quantizer.embedding.weight.grad, expected, atol=1e-4, rtol=1e-2)
    assert quantizer.usage() == usage


def test_finds_the_nearest_row() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    codebook = torch.randn(24, 4, generator=generator, dtype=torch.float64)
    expected = torch.cdist(rows, codebook).square()
    torch.testing.assert_close(squared_distances(rows, codebook), expected)


def test_effective_codebook_is_on_the_sphere_whatever_the_rows() -> None:
    quantizer = golden_quantizer(l2_norm=True)
    with torch.no_grad():
        quantizer.embedding.weight.mul_(3.0)
    assert_close(quantizer.codebook().norm(dim=1), torch.ones(24), atol=1e-6, rtol=0)
    codes = torch.arange(24).view(1, 4, 6)
    looked_up = quantizer.lookup(codes).permute(0, 2, 3, 1).reshape(24, 4)
    assert torch.equal(looked_up, quantizer.codebook())


def test_usage_window_forgets_the_oldest_codes() -> None:
    quantizer = golden_quantizer(l2_norm=True).train()
    window = quantizer.get_buffer("codebook_used")
    window.copy_(torch.arange(USAGE_WINDOW) % 24)
    codes = quantizer(load_golden("vq_quantizer/io.safetensors")["z"]).codes.flatten()
    assert torch.equal(window[-18:].long(), codes)
    assert torch.equal(window[:-18].long(), (torch.arange(18, USAGE_WINDOW) % 24))


def test_more_codes_in_a_batch_than_the_window_holds() -> None:
    quantizer = VectorQuantizer(4, 2).train()
    out = quantizer(torch.randn(1, 2, 257, 256))
    newest = out.codes.flatten()[-USAGE_WINDOW:]
    assert torch.equal(quantizer.get_buffer("codebook_used").long(), newest)


def test_autocast_does_not_lower_the_precision_of_distances() -> None:
    quantizer = golden_quantizer(l2_norm=True).eval()
    z = load_golden("vq_quantizer/io.safetensors")["z"]
    exact = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = quantizer(z)
    assert torch.equal(exact.codes, mixed.codes)
    assert torch.equal(exact.quant, mixed.quant)
