from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masc_core.tree.upgma import candidates as module
from masc_core.tree.upgma.candidates import Candidates
from masc_core.tree.upgma.clusters import Clusters
from tests.masc_core.tree.upgma.moments import average_distances, random_pairs, singletons


def assert_true(candidates: Candidates, clusters: Clusters) -> None:
    """Listed distances are exact and ascending, and nothing outside a list is nearer."""
    distances = average_distances(clusters)
    scale = np.max(distances, where=np.isfinite(distances), initial=0.0)
    lists = candidates.lists
    alive = np.flatnonzero(clusters.listed)  # those with a row of distances are in no list
    for i in alive:
        length = lists.lengths[i]
        ids, listed = lists.ids[i, :length], lists.distances[i, :length]
        assert len(set(ids.tolist())) == length
        assert i not in ids
        assert clusters.listed[ids].all()
        assert np.all(np.diff(listed) >= 0)
        np.testing.assert_allclose(listed, distances[i, ids], rtol=1e-10, atol=1e-14 * scale)
        assert np.all(listed <= lists.lower_bound[i])
        outside = np.setdiff1d(alive, [*ids, i])
        assert np.all(distances[i, outside] >= lists.lower_bound[i] - 1e-12 * scale)


def assert_knows_nearest(candidates: Candidates, clusters: Clusters) -> None:
    """The pairs that merge are each other's nearest."""
    distances = average_distances(clusters)
    for i, j, height in zip(*candidates.reciprocal_neighbours(), strict=True):
        assert i < j
        nearest = min(distances[i].min(), distances[j].min())
        assert height == pytest.approx(distances[i, j], rel=1e-10)
        assert height == pytest.approx(nearest, rel=1e-10)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.sampled_from([1, 3, 16]),
    many_points=st.sampled_from([2.0, 512.0]),
)
@pytest.mark.parametrize("max_pairs", [0.0, 6.0, 2048.0])
def test_lists_stay_true_through_any_merges(
    seed: int, width: int, many_points: float, max_pairs: float
) -> None:
    rng = np.random.default_rng([seed, 2])
    clusters = singletons(seed)
    candidates = Candidates(clusters, width)
    next_node = len(clusters.alive)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_PAIRS", max_pairs)
        patch.setattr(module, "MANY_POINTS", many_points)
        patch.setattr(module, "NUM_CENTROIDS", 2)
        patch.setattr(module, "FEW_ROWS", int(rng.integers(0, 60)))
        for _ in range(6):
            candidates.fill_empty()
            assert_true(candidates, clusters)
            assert_knows_nearest(candidates, clusters)
            into, dropped = random_pairs(clusters, rng)
            candidates.merge(into, dropped, next_node + np.arange(len(into)))
            next_node += len(into)
            assert_true(candidates, clusters)
