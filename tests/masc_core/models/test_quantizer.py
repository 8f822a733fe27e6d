from __future__ import annotations

import pytest
import torch

from masc_core.models.quantizer import USAGE_WINDOW, VectorQuantizer, squared_distances
from tests.golden_files import assert_close, load_golden


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
