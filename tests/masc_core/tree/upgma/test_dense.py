from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster import hierarchy
from scipy.spatial import distance

from masc_core.tree.upgma.clusters import Clusters
from masc_core.tree.upgma.dense import CHUNK, chain, mean_distances
from tests.masc_core.tree.upgma.moments import average_distances, random_pairs


@pytest.mark.parametrize("dimensions", [8, 16, 64])
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_means_over_the_members(dimensions: int, offset: float) -> None:
    rng = np.random.default_rng(0)
    count = 2 * CHUNK + 37  # no multiple of what is taken at a time
    points = rng.normal(size=(count, dimensions)) + offset * (np.arange(count) % 2)[:, None]
    weights = rng.integers(1, 5, count).astype(float)
    clusters = Clusters.singletons(points, weights, np.arange(count), np.arange(count))
    for _ in range(3):
        clusters.merge(*random_pairs(clusters, rng))
    clusters.compact()
    done: list[int] = []
    matrix = mean_distances(clusters, done.append)
    expected = average_distances(clusters)
    np.testing.assert_allclose(matrix, expected, rtol=1e-9)
    assert np.array_equal(matrix, matrix.T)
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
