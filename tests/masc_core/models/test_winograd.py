from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from masc_core.arrays import Float32Array
from masc_core.models.winograd import POINTS, Convolution, convolve, winograd_matrices


def normal(*shape: int, seed: int = 0) -> Float32Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def computed(
    x: Float32Array,
    conv: Convolution,
    *,
    affine: Float32Array | None = None,
    factor: int = 1,
    add_to: Float32Array | None = None,
    parts: int = 1,
) -> Float32Array:
    height, width = x.shape[0] * factor, x.shape[1] * factor
    shape = (height, width, len(conv.bias))
    out = np.full(shape, np.nan, np.float32) if add_to is None else add_to.copy()
    affine = np.empty((2, 0), np.float32) if affine is None else affine
    scratch = np.full((parts, conv.scratch_size(height, width)), np.nan, np.float32)
    rows, add = conv.tile_rows(height, width), add_to is not None
    for part in range(parts):
        convolve(x, affine, factor, conv, rows, add, out, scratch, part, parts)
    return out


def expected(x: Float32Array, weight: Float32Array, bias: Float32Array) -> Float32Array:
    """In float64, by definition."""
    image, kernel, summand = (torch.from_numpy(array).double() for array in (x, weight, bias))
    out = F.conv2d(image.permute(2, 0, 1)[None], kernel, summand, padding=1)
    return out[0].permute(1, 2, 0).float().numpy()


@pytest.mark.parametrize("m", list(POINTS))
def test_the_matrices_are_a_convolution(m: int) -> None:
    out_of, change, into = winograd_matrices(m)
    row, weights = normal(m + 2), normal(3, seed=1)
    assert np.allclose(
        out_of @ ((change @ weights) * (into @ row)),
        [row[i : i + 3] @ weights for i in range(m)],
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("height", "width", "channels", "outputs", "m"),
    [
        (1, 1, 16, 16, 4),
        (4, 8, 32, 16, 4),
        (33, 30, 16, 48, 4),
        (9, 200, 16, 16, 4),
        (7, 10, 512, 256, 2),
    ],
)
def test_it_is_the_convolution(
    height: int, width: int, channels: int, outputs: int, m: int
) -> None:
    x, bias = normal(height, width, channels), normal(outputs, seed=2)
    weight = normal(outputs, channels, 3, 3, seed=1) / np.float32(3 * channels**0.5)
    conv = Convolution.of(weight, bias)
    assert len(conv.output_transform) == m
    whole = computed(x, conv)
    assert np.abs(whole - expected(x, weight, bias)).max() < 3e-5
    for parts in (2, 5):
        assert np.array_equal(computed(x, conv, parts=parts), whole)


def test_channels_are_filled_up() -> None:
    weight, bias, x = normal(3, 20, 3, 3), normal(3, seed=1), normal(6, 6, 20, seed=2)
    filled = np.pad(x, ((0, 0), (0, 0), (0, 12)))
    out = computed(filled, Convolution.of(weight, bias))
    assert np.abs(out[:, :, :3] - expected(x, weight, bias)).max() < 1e-4
    assert not out[:, :, 3:].any()


def test_what_stands_before_and_after() -> None:
    x, bias = normal(5, 7, 16), normal(32, seed=2)
    weight = normal(32, 16, 3, 3, seed=1) / np.float32(12)
    affine, residual = normal(2, 16, seed=3), normal(10, 14, 32, seed=4)
    conv = Convolution.of(weight, bias)
    active = F.silu(torch.from_numpy(x * affine[0] + affine[1]).double()).float().numpy()
    twice = active.repeat(2, axis=0).repeat(2, axis=1)
    out = computed(x, conv, affine=affine, factor=2, add_to=residual)
    assert np.abs(out - expected(twice, weight, bias) - residual).max() < 3e-5


def test_swish_is_exact_everywhere() -> None:
    values = np.linspace(-100, 100, 16 * 1001, dtype=np.float32).reshape(1, -1, 16)
    middle = np.zeros((16, 16, 3, 3), np.float32)
    middle[range(16), range(16), 1, 1] = 1
    identity = Convolution.of(middle, np.zeros(16, np.float32))
    affine = np.repeat(np.array([[1], [0]], np.float32), 16, axis=1)
    exact = F.silu(torch.from_numpy(values).double()).numpy()
    error = np.abs(computed(values, identity, affine=affine) - exact)
    assert error.max() < 2e-4  # what is lost in sums of numbers around 100
    near = np.abs(values) < 8
    assert error[near].max() < 2e-5


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_a_number_stays_so(wrong: float) -> None:
    x = normal(4, 4, 16)
    x[1, 1, 1] = wrong
    conv = Convolution.of(normal(16, 16, 3, 3, seed=1), normal(16, seed=2))
    affine = np.ones((2, 16), np.float32)
    assert not np.isfinite(computed(x, conv, affine=affine)).all()
