from __future__ import annotations

import numpy as np
import pytest

from masc_core.arrays import Float32Array
from masc_core.models.gemm_microkernel import COLUMNS, pack, tile_product
from masc_core.numba_jit import njit_unchecked

six_rows, one_row = tile_product(6), tile_product(1)


@njit_unchecked
def multiply_six(a: Float32Array, panels: Float32Array, c: Float32Array) -> None:
    depth = a.shape[1]
    for p in range(len(panels)):
        b = (panels, p * depth * 16, 16)
        six_rows((a, 0, depth), b, (c, p * 16, c.shape[1]), depth)


@njit_unchecked
def multiply_one(a: Float32Array, panels: Float32Array, c: Float32Array, row: int) -> None:
    depth = a.shape[1]
    for p in range(len(panels)):
        to = (c, row * c.shape[1] + p * 16, c.shape[1])
        one_row((a, row * depth, depth), (panels, p * depth * 16, 16), to, depth)


def matrices(depth: int, width: int) -> tuple[Float32Array, Float32Array]:
    generator = np.random.default_rng(0)
    return (
        generator.standard_normal((6, depth), np.float32),
        generator.standard_normal((depth, width), np.float32),
    )


@pytest.mark.parametrize(("depth", "width"), [(1, 16), (8, 32), (100, 21)])
def test_it_is_the_product(depth: int, width: int) -> None:
    a, b = matrices(depth, width)
    panels = pack(b)
    c = np.full((6, len(panels) * COLUMNS), np.nan, np.float32)
    multiply_six(a, panels, c)
    assert np.allclose(c[:, :width], a.astype(np.float64) @ b, rtol=0, atol=1e-5 * depth**0.5)
    assert not c[:, width:].any()


def test_the_bits_of_a_row_are_the_same_alone() -> None:
    a, b = matrices(300, 48)
    together, alone = np.zeros((2, 6, 48), np.float32)
    multiply_six(a, pack(b), together)
    for row in range(6):
        multiply_one(a, pack(b), alone, row)
    assert np.array_equal(together, alone)


def test_panels_are_columns() -> None:
    _, b = matrices(5, 20)
    panels = pack(b)
    assert panels.shape == (2, 5, COLUMNS)
    assert np.array_equal(panels[0], b[:, :16])
    assert np.array_equal(panels[1, :, :4], b[:, 16:])
    assert not panels[1, :, 4:].any()
