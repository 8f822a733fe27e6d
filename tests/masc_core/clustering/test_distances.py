from __future__ import annotations

import numpy as np
import pytest

from masc_core.clustering.distances import first_lowest, squared_distances


def test_squared_distances_are_numpys() -> None:
    points = np.random.default_rng(0).normal(size=(5, 9))
    distances = np.full(4, np.nan)
    squared_distances(points[:, 7], points, 3, distances)
    expected = np.square(points[:, 3:7] - points[:, 7:8]).sum(axis=0)
    np.testing.assert_allclose(distances, expected, rtol=1e-14)


def test_points_at_infinity_are_infinitely_far_away() -> None:
    points = np.array([[0.0, np.inf, 3.0], [0.0, np.inf, 4.0]])
    distances = np.empty(3)
    squared_distances(points[:, 0], points, 0, distances)
    assert distances.tolist() == [0.0, np.inf, 25.0]


def test_distances_are_the_same_from_both_ends() -> None:
    points = np.random.default_rng(1).normal(size=(7, 40))
    matrix = np.empty((40, 40))
    for i in range(40):
        squared_distances(points[:, i], points, 0, matrix[i])
    assert np.array_equal(matrix, matrix.T)
    assert not matrix.diagonal().any()


@pytest.mark.parametrize(
    ("values", "at"),
    [([3.0], 0), ([2.0, 1.0, 1.0], 1), ([np.inf, np.inf], 0), ([np.inf, 5.0], 1)],
)
def test_first_of_the_lowest_values(values: list[float], at: int) -> None:
    assert first_lowest(np.array(values)) == at
