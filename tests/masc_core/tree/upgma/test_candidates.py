from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masc_core.tree.upgma import candidates as candidates_module
from masc_core.tree.upgma.candidates import Candidates
from masc_core.tree.upgma.clusters import Clusters
from tests.masc_core.tree.upgma.moments import average_distances, random_pairs, singletons


def assert_true(candidates: Candidates, clusters: Clusters) -> None:
    """Listed distances are exact and ascending, and nothing outside a list is nearer."""
    distances = average_distances(clusters)
    scale = np.max(distances, where=np.isfinite(distances), initial=0.0)
    lists = candidates.lists
    alive = np.flatnonzero(clusters.alive)
    for i in alive:
        length = lists.lengths[i]
        ids, listed = lists.ids[i, :length], lists.distances[i, :length]
        assert len(set(ids.tolist())) == length
        assert i not in ids
        assert clusters.alive[ids].all()
        assert np.all(np.diff(listed) >= 0)
        np.testing.assert_allclose(listed, distances[i, ids], rtol=1e-10, atol=1e-14 * scale)
        assert np.all(listed <= lists.lower_bound[i])
        outside = np.setdiff1d(alive, [*ids, i])
        assert np.all(distances[i, outside] >= lists.lower_bound[i] - 1e-12 * scale)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), width=st.sampled_from([1, 3, 16]))
@pytest.mark.parametrize("budget", [0, 6, 2048])
def test_lists_stay_true_through_any_merges(seed: int, width: int, budget: int) -> None:
    rng = np.random.default_rng([seed, 2])
    clusters = singletons(seed)
    candidates = Candidates(len(clusters.alive), width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates_module, "BUDGET", float(budget))
        for _ in range(6):
            empty = candidates.empty(np.flatnonzero(clusters.alive))
            candidates.fill_exhaustively(clusters, empty)
            assert not len(candidates.empty(np.flatnonzero(clusters.alive)))
            assert_true(candidates, clusters)
            into, dropped = random_pairs(clusters, rng)
            candidates.merge(clusters, into, dropped)
            clusters.merge(into, dropped)
            assert_true(candidates, clusters)
            if rng.random() < 0.4:
                candidates.compact(*clusters.compact())
                assert_true(candidates, clusters)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_dropped_slots_are_in_no_list(seed: int) -> None:
    clusters = singletons(seed)
    candidates = Candidates(len(clusters.alive), 5)
    slots = np.flatnonzero(clusters.alive)
    candidates.fill_exhaustively(clusters, slots)
    before = [ids[:length].tolist() for ids, length in zip(*candidates.lists[::2], strict=True)]
    dropped = slots[:: 1 + seed % 3]
    candidates.drop(dropped)
    assert len(candidates.empty(dropped)) == len(dropped)
    kept = np.setdiff1d(slots, dropped)
    true = average_distances(clusters)
    for i in kept:
        left = candidates.lists.ids[i, : candidates.lists.lengths[i]].tolist()
        assert left == [j for j in before[i] if j in kept]
        distances = candidates.lists.distances[i, : len(left)]
        np.testing.assert_allclose(distances, true[i, left], rtol=1e-10)
