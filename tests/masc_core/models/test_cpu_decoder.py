"""The fast decoder against the module, in both golden sizes and in a full one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from masc_core.models.cpu_decoder import CPUDecoder
from masc_core.models.vq import VQConfig, VQModel, to_uint8
from tests.golden_files import load_golden
from tests.masc_core.models.test_vq import golden_model


@pytest.fixture(scope="module")
def large() -> VQModel:
    """VQ-16 as it is served, with random weights."""
    torch.manual_seed(0)
    return VQModel(VQConfig.named("VQ-16", num_codes=64)).eval()


def psnr(images: Tensor, reference: Tensor) -> float:
    """In dB, of 8-bit pixels."""
    error = (to_uint8(images).double() - to_uint8(reference).double()).square().mean()
    return float(10 * torch.log10(255**2 / error))


@torch.inference_mode()
@pytest.mark.parametrize("case", ["vq16", "vq8"])
def test_golden_images(case: str) -> None:
    model, io = golden_model(case), load_golden(f"{case}/io.safetensors")
    images = CPUDecoder(model.decoder)(model.latents(io["codes"].view(2, 16)))
    assert images.shape == io["codes_image"].shape
    assert (images - io["codes_image"]).abs().max() < 1e-3
    assert psnr(images, io["codes_image"]) > 65


@torch.inference_mode()
def test_a_full_size(large: VQModel) -> None:
    z = large.latents(torch.arange(64)[None])
    decode, reference = CPUDecoder(large.decoder), large.decoder(z)
    images = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        images.append(decode(z))
    assert (images[0] - reference).abs().max() < 1e-3
    assert psnr(images[0], reference) > 65
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


@torch.inference_mode()
def test_the_bytes_of_an_image_are_its_own() -> None:
    model = golden_model("vq16")
    decode, z = CPUDecoder(model.decoder), model.latents(torch.arange(64).view(4, 16))
    assert torch.equal(decode(z), torch.cat([decode(image[None]) for image in z]))


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 3])
def test_upper_rows(rows: int) -> None:
    model = golden_model("vq8")
    z = model.latents(torch.arange(5 * rows)[None], width=5)
    images = CPUDecoder(model.decoder)(z)
    assert images.shape == (1, 3, 8 * rows, 40)
    assert (images - model.decoder(z)).abs().max() < 1e-3


@torch.inference_mode()
def test_channels_that_are_no_whole_panel() -> None:
    torch.manual_seed(0)
    model = VQModel(VQConfig(num_codes=8, ch=32, ch_mult=(1, 3), num_res_blocks=1, z_channels=20))
    z = torch.randn(1, 20, 3, 3)
    images = CPUDecoder(model.eval().decoder)(z)
    assert (images - model.decoder(z)).abs().max() < 1e-3


def test_refuses_what_it_has_no_kernel_for() -> None:
    decoder = golden_model("vq8").decoder
    decoder.mid.append(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="Linear"):
        CPUDecoder(decoder)
