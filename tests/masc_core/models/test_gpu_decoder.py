"""The compiled decoder: traced here, computed by a GPU's kernels there."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from masc_core.models.gigatok import GigaTok
from masc_core.models.gpu_decoder import SIZES, GPUDecoder
from masc_core.models.vq import VQConfig, VQModel
from tests.masc_core.models.test_vq import golden_model
from tests.tiny_bundle import NUM_CODES, tiny_gigatok_parts


def latents(model: VQModel, num: int, rows: int = 4) -> Tensor:
    return model.latents(torch.arange(num * rows * 4).view(num, -1) % 64, width=4)


def small_model(ch: int) -> VQModel:
    """As wide as asked for, and no deeper than needed: 8x8 pixels of 4x4 positions."""
    config = VQConfig(num_codes=64, ch=ch, ch_mult=(1, 1), num_res_blocks=1, z_channels=32)
    return VQModel(config).eval()


@torch.inference_mode()
def test_the_decoder_of_a_1d_tokenizer_is_one_graph() -> None:
    torch.compiler.reset()
    graphs: list[GraphModule] = []

    def backend(graph: GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph

    model = tiny_gigatok_parts().tokenizer
    assert isinstance(model, GigaTok)
    decode = GPUDecoder(model.decoder, backend=backend)
    for num in (2, 1, 2):
        z = model.latents(torch.arange(16 * num).view(num, 16) % NUM_CODES)
        assert (decode(z) - model.decoder(z)).abs().max() < 1e-4
    assert len(graphs) == 2  # one a size of batch


@torch.inference_mode()
def test_another_model_of_these_sizes_needs_no_other_kernels() -> None:
    torch.compiler.reset()
    graphs: list[GraphModule] = []

    def backend(graph: GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph

    for _ in range(10):
        model = small_model(32)
        GPUDecoder(model.decoder, backend=backend)(latents(model, 1))
    assert len(graphs) == 1


@torch.inference_mode()
def test_batches_are_filled_up_to_a_few_sizes_and_each_width_keeps_its_kernels() -> None:
    torch.compiler.reset()
    sizes: list[int] = []

    def backend(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        sizes.extend(len(x) for x in inputs if x.shape[1:] == (32, 4, 4))
        return graph

    decoders = [
        (model, GPUDecoder(model.decoder, backend=backend)) for model in map(small_model, (32, 64))
    ]
    for nums in ((1, 3, 4, 2, 9, 16, 5), SIZES):
        for model, decode in decoders:
            for num in nums:
                z = latents(model, num)
                images = decode(z)
                assert images.shape == (num, 3, 8, 8)
                assert (images - model.decoder(z)).abs().max() < 1e-4
    assert sorted(sizes) == sorted(2 * SIZES)


@torch.inference_mode()
def test_out_of_memory_is_no_reason_to_decode_slowly() -> None:
    torch.compiler.reset()

    def backend(_graph: GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        def run(*_: Tensor) -> object:
            raise torch.OutOfMemoryError("of the device")

        return run

    model = small_model(32)
    decode, z = GPUDecoder(model.decoder, backend=backend), latents(model, 1)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            decode(z)


@torch.inference_mode()
def test_a_preview_is_not_compiled() -> None:
    graphs: list[GraphModule] = []

    def backend(graph: GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph

    model = small_model(32)
    z = latents(model, 2, rows=2)
    assert torch.equal(GPUDecoder(model.decoder, backend=backend)(z), model.decoder(z))
    assert not graphs


@torch.inference_mode()
def test_without_a_compiler_it_decodes_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    torch.compiler.reset()

    def backend(_graph: GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        raise RuntimeError("no such driver")

    model = small_model(32)
    decode, z = GPUDecoder(model.decoder, backend=backend), latents(model, 1)
    for _ in range(2):
        assert (decode(z) - model.decoder(z)).abs().max() < 1e-4
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert "SLOWLY" in record.message


@pytest.mark.gpu
@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_gpu_decodes_what_the_module_does(dtype: torch.dtype) -> None:
    model = golden_model("vq8")
    z = latents(model, 3)
    expected = model.decoder(z)
    images = GPUDecoder(model.decoder.cuda(), dtype)(z.cuda()).cpu()
    error = (images - expected).clamp(-1, 1).square().mean()
    assert 10 * torch.log10(4 / error) > 50
