from __future__ import annotations

import dataclasses

import pytest
import torch

from masc_core.errors import ConfigError
from masc_core.io.tensors import without_memory
from masc_core.models.gigatok import (
    GigaTok,
    GigaTokConfig,
    latent_groups,
    new_tokenizer,
    preview_sources,
)
from masc_core.models.vq import VQConfig, VQModel
from tests.golden_files import assert_close, load_golden, load_golden_json

GOLDEN_SIZES = GigaTokConfig(
    num_codes=64,
    ch=32,
    ch_mult=(1, 1, 1, 2),
    z_channels=32,
    latent_shape=(1, 16),
    encoder_width=32,
    encoder_layers=2,
    encoder_heads=4,
    decoder_width=32,
    decoder_layers=2,
    decoder_heads=4,
)


def golden_model() -> GigaTok:
    weights = load_golden("gigatok/tok1d_weights.safetensors")
    model = GigaTok(GOLDEN_SIZES)
    model.load_state_dict({k: v for k, v in weights.items() if ".distill_mlp." not in k})
    return model.eval()


def test_reproduces_upstream() -> None:
    model, io = golden_model(), load_golden("gigatok/tok1d_io.safetensors")
    with torch.no_grad():
        cells = model.encoder(io["image"])
        tokens = model.s2to1encoder(cells)
        features = model.features(io["image"])
        images, quantized = model(io["image"])
        spatial = model.decoder_input(quantized.quant)
    assert_close(cells, io["cnn_features"], atol=2e-4, rtol=1e-3)
    assert_close(tokens, io["vit_out"], atol=5e-4, rtol=1e-3)
    assert_close(features, io["pre_quant"], atol=5e-4, rtol=1e-3)
    assert torch.equal(quantized.codes.flatten(), io["indices"])
    assert_close(quantized.quant, io["quant"], atol=2e-5, rtol=1e-4)
    assert_close(spatial, io["recon_spatial"], atol=5e-4, rtol=1e-3)
    assert_close(images, io["recon"], atol=1e-3, rtol=2e-3)


def test_decodes_codes_as_upstream() -> None:
    model, io = golden_model(), load_golden("gigatok/tok1d_io.safetensors")
    with torch.no_grad():
        vectors = model.quantize.lookup(io["codes"][:, None])
        images = model.decode_codes(io["codes"])
    assert vectors.shape == (2, 8, 1, 16)
    assert_close(vectors, io["codes_latent"], atol=1e-6, rtol=1e-6)
    assert_close(images, io["codes_image"], atol=1e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("name", "file", "total"),
    [
        ("S-S", "SS", 129_252_619),
        ("S-B", "SB", 218_236_939),
        ("B-L", "BL", 597_510_923),
        ("XL-XXL", "XLXXL", 2_842_052_875),
    ],
)
def test_full_sizes_have_upstreams_keys(name: str, file: str, total: int) -> None:
    with without_memory():
        model = GigaTok(GigaTokConfig.named(name))
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    upstream = load_golden_json(f"shapes/gigatok_VQ_{file}256.json")
    assert shapes == {k: shape for k, shape in upstream.items() if ".distill_mlp." not in k}
    assert sum(p.numel() for p in model.parameters()) == total


def test_tokens_stand_for_halves_of_the_image() -> None:
    groups = latent_groups(256)
    assert [rows * columns for rows, columns in groups] == [1, 1, 2, 4, 8, 16, 32, 64, 128]
    assert groups[2:5] == [(1, 2), (2, 2), (2, 4)]


def test_a_preview_repeats_the_last_group_that_is_whole() -> None:
    # Groups of 16 tokens begin at 0, 1, 2, 4 and 8; the last has two rows of four.
    assert preview_sources(1, 16) == [0] * 16
    assert preview_sources(3, 16) == [0, 1, 2, *[1] * 13]
    assert preview_sources(4, 16) == [0, 1, 2, 3, 2, 3, 2, 3, 2, 2, 3, 3, 2, 2, 3, 3]
    assert preview_sources(10, 16) == [*range(10), 5, 5, 6, 6, 7, 7]
    assert preview_sources(16, 16) == list(range(16))


def test_the_beginning_of_the_codes_makes_a_whole_image() -> None:
    model, codes = golden_model(), load_golden("gigatok/tok1d_io.safetensors")["codes"]
    with torch.no_grad():
        part = model.decode_codes(codes[:, :9])
        whole = model.decode_codes(codes[:, preview_sources(9, 16)])
    assert part.shape == (2, 3, 32, 32)
    assert torch.equal(part, whole)


def test_a_tokenizer_has_one_image_size() -> None:
    assert GOLDEN_SIZES.grid_size(32) == 4
    with pytest.raises(ConfigError, match="image_size: must be 32, the only one"):
        GOLDEN_SIZES.grid_size(64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_shape": (2, 16)}, "latent_shape"),
        ({"latent_shape": (1, 32)}, "latent_shape"),
        ({"latent_shape": (1, 0)}, "latent_shape"),
        ({"encoder_heads": 5}, "encoder_heads"),
        ({"decoder_width": 0}, "decoder_heads"),
        ({"decoder_layers": 129}, "decoder_layers"),
        ({"ch_mult": ()}, "ch_mult"),
    ],
)
def test_refuses_impossible_sizes(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(GOLDEN_SIZES, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["B", "B-Q", "", "L-L-L"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no size"):
        GigaTokConfig.named(name)


def test_a_configuration_says_which_kind_it_is() -> None:
    with without_memory():
        assert type(new_tokenizer(VQConfig(num_codes=8))) is VQModel
        assert type(new_tokenizer(GOLDEN_SIZES)) is GigaTok
