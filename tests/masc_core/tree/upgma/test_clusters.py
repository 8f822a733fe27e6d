from __future__ import annotations

import numpy as np
import pytest

from masc_core.tree.upgma.clusters import LEAF, spatial_order


@pytest.mark.parametrize("count", [1, LEAF, LEAF + 1, 1000])
def test_order_is_a_permutation(count: int) -> None:
    order = spatial_order(np.random.default_rng(0).normal(size=(count, 3)))
    assert np.array_equal(np.sort(order), np.arange(count))


def test_leaves_are_small_in_space() -> None:
    points = np.random.default_rng(1).uniform(size=(64 * LEAF, 2))
    leaves = points[spatial_order(points)].reshape(-1, LEAF, 2)
    areas = np.prod(np.ptp(leaves, axis=1), axis=1)
    assert np.median(areas) < 2 / len(leaves)
