from __future__ import annotations

import numpy as np
import pytest

from masc_core.tree.upgma.tiles import add_distances, tile_squares, tiles_of


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
