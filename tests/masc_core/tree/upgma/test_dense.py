from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster import hierarchy
from scipy.spatial import distance

from masc_core.tree.upgma.dense import CHUNK, chain
from tests.masc_core.tree.upgma.moments import average_distances, clusters_of, random_pairs


@pytest.mark.parametrize("dimensions", [8, 16, 64])
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_means_over_the_members(dimensions: int, offset: float) -> None:
    rng = np.random.default_rng(0)
    count = 2 * CHUNK + 37  # no multiple of what is taken at a time
    points = rng.normal(size=(count, dimensions)) + offset * (np.arange(count) % 2)[:, None]
    clusters = clusters_of(points, rng.integers(1, 5, count).astype(float))
    for _ in range(3):
        clusters.merge(*random_pairs(clusters, rng))
    done: list[int] = []
    matrix, sizes, _ = clusters.distance_matrix(lambda points, _total, _what: done.append(points))
    np.testing.assert_allclose(matrix, average_distances(clusters), rtol=1e-9)
    assert np.array_equal(matrix, matrix.T)
    assert np.array_equal(sizes, clusters.sizes)
    assert done[-1] == count


@pytest.mark.parametrize("count", [2, 3, 40])
def test_the_chain_merges_as_scipy_does(count: int) -> None:
    condensed = distance.pdist(np.random.default_rng(1).normal(size=(count, 3)))
    matrix = distance.squareform(condensed)
    np.fill_diagonal(matrix, np.inf)
    into, dropped, heights = chain(matrix, np.ones(count))
    oracle = hierarchy.linkage(condensed, "average")
    np.testing.assert_allclose(np.sort(heights), oracle[:, 2])
    assert np.all(into < dropped)
    assert len(set(dropped.tolist())) == count - 1  # nobody is merged away twice
