from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import distance

from masc_core.tree.upgma.distances import Products, add_distances, tile_squares, tiles_of


@pytest.mark.parametrize("dimensions", [8, 16, 24])
def test_distances_to_a_tile(dimensions: int) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(150, dimensions))
    tiles = tiles_of(points, 64, fill=np.inf)
    assert tiles.shape == (3, dimensions, 64)
    assert np.isinf(tiles[2, :, 22:]).all()
    expected = np.linalg.norm(points[64:128] - points[3], axis=1)
    squares, sums = np.empty(64), np.ones(64)
    tile_squares(tiles[1], points[3], squares)
    np.testing.assert_allclose(squares, expected**2)
    add_distances(tiles[1], points[3], 2.5, sums)
    np.testing.assert_allclose(sums, 1 + 2.5 * expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("unit", [2.0**-100, 1.0, 2.0**100])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_errors_are_within_the_margin(
    dtype: type[np.float32 | np.float64], unit: float, offset: float
) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 96)) * rng.pareto(1.0, size=(300, 1))
    vectors[150:] += offset
    products = Products(vectors * unit, dtype)
    for rows in (np.arange(20), np.arange(150, 170), np.arange(290, 300), np.arange(140, 160)):
        squares = products.rows_to_all(rows)
        both = squares.own[:, None].astype(float) + squares.norms
        ours = both - 2.0 * squares.products.astype(float)
        exact = distance.cdist(vectors[rows], vectors, "sqeuclidean") / (products.scale / unit) ** 2
        assert np.all(np.abs(ours - exact) <= squares.margin * both)
        onto = products.all_to_rows(rows, 100)
        assert onto.products.shape == (200, len(rows))
        np.testing.assert_allclose(onto.products.T, squares.products[:, 100:], rtol=1e-4, atol=1e-6)


def test_rows_far_off_are_seen_from_near_by() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 64)) + 1e6 * np.repeat([0, 1], 100)[:, None]
    products = Products(vectors, np.float32)
    for rows in (np.arange(100, 120), np.arange(20), np.arange(120, 140)):
        squares = products.rows_to_all(rows)
        assert (
            float(np.max(squares.own)) < 1e-9
        )  # 64 dimensions of length one, in units of a million


def test_equal_vectors_have_no_distance() -> None:
    squares = Products(np.full((5, 8), 3.0), np.float64).rows_to_all(np.arange(5))
    assert not np.any(squares.own)
    assert not np.any(squares.products)
