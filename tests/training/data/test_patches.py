from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from masc_core.errors import NonFiniteError
from masc_core.models.vq import VQConfig, VQModel, to_uint8
from training.data.patches import code_patches, enlarge


def make_model(num_codes: int = 40, seed: int = 0) -> VQModel:
    """A tokenizer that gives two pixels a side to a code."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = VQConfig(
            num_codes=num_codes,
            code_dim=4,
            ch=32,
            ch_mult=(1, 1),
            num_res_blocks=1,
            z_channels=32,
        )
        return VQModel(config).eval()


class LinearDecoder(nn.Module):
    """Two by two pixels of a position, linear in the features of it and its neighbours."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(features, 3 * 4, 3, padding=1)
        nn.init.normal_(self.mix.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.mix(x), 2)


def linear_model() -> VQModel:
    model = make_model()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model.decoder = LinearDecoder(32)  # type: ignore[assignment]
        for parameter in model.post_quant_conv.parameters():
            parameter.data *= 0.3  # no pixel leaves 0..255
    return model


def own_pixels(model: VQModel) -> Tensor:
    """What a code adds to its own pixels in a linear decoder, in 8-bit levels, (V, 2, 2, 3)."""
    with torch.inference_mode():
        alone = model.decode_codes(torch.arange(model.config.num_codes)[:, None])
    return 127.5 * alone.permute(0, 2, 3, 1)


def test_one_shuffle_is_exact_where_neighbours_act_linearly() -> None:
    model = linear_model()
    patches = code_patches(model, shuffles=1).astype(float)
    own = own_pixels(model).numpy()
    assert own.std(axis=0).min() > 1
    difference = (patches - patches.mean(0)) - (own - own.mean(0))
    assert np.abs(difference).max() < 1  # of a level, to which the pixels are rounded


def test_patches_are_the_mean_over_random_grids() -> None:
    model = make_model()
    generator = torch.Generator().manual_seed(5)
    codes = torch.randint(0, 40, (600, 64), generator=generator)
    sums, counts = np.zeros((40, 2, 2, 3)), np.bincount(codes.ravel().numpy(), minlength=40)
    with torch.inference_mode():
        for part in torch.split(codes, 100):
            images = to_uint8(model.decode_codes(part)).numpy()
            tiles = images.reshape(-1, 8, 2, 8, 2, 3).swapaxes(2, 3).reshape(-1, 2, 2, 3)
            np.add.at(sums, part.ravel().numpy(), tiles)
    expected = sums / counts[:, None, None, None]

    def error(shuffles: int) -> float:
        return float(np.abs(code_patches(model, shuffles=shuffles) - expected).mean())

    assert error(16) < 2.0 < expected.std(axis=0).mean()
    assert error(16) < error(1) / 2


def test_the_seed_decides() -> None:
    model = make_model()
    first = code_patches(model, shuffles=1, seed=3)
    assert np.array_equal(first, code_patches(model, shuffles=1, seed=3))
    assert not np.array_equal(first, code_patches(model, shuffles=1, seed=4))


def test_equal_rows_give_equal_patches() -> None:
    model = linear_model()
    model.quantize.embedding.weight.data[7] = model.quantize.embedding.weight.data[9]
    patches = code_patches(model, shuffles=2).astype(int)
    assert np.abs(patches[7] - patches[9]).max() <= 1


@pytest.mark.parametrize("num_codes", [2, 65, 1100])
def test_every_code_has_a_patch(num_codes: int) -> None:
    reports: list[tuple[int, int]] = []
    patches = code_patches(
        make_model(num_codes),
        shuffles=1,
        batch_size=7,
        report=lambda step, total, _: reports.append((step, total)),
    )
    assert patches.shape == (num_codes, 2, 2, 3)
    assert patches.dtype == np.uint8
    assert [step for step, _ in reports] == list(range(1, reports[0][1] + 1))


def test_a_decoder_that_overflows_is_refused() -> None:
    model = make_model()
    model.post_quant_conv.bias.data.fill_(torch.inf)  # type: ignore[union-attr]
    with pytest.raises(NonFiniteError, match="decoder"):
        code_patches(model, shuffles=1)


def test_enlarging_repeats_pixels() -> None:
    patches = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    large = enlarge(patches, 5)
    assert large.shape == (2, 6, 6, 3)
    assert np.array_equal(large[:, 1::3, 2::3], patches)
    assert np.array_equal(large[:, 3:, :3], np.broadcast_to(patches[:, 1:, :1], (2, 3, 3, 3)))
    assert np.array_equal(enlarge(patches, 1), patches)
