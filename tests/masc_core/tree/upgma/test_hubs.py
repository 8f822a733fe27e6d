from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masc_core.tree.upgma import hubs as hubs_module
from masc_core.tree.upgma.clusters import Clusters
from masc_core.tree.upgma.hubs import Hubs
from tests.masc_core.tree.upgma.moments import average_distances, random_pairs, singletons


def assert_true(hubs: Hubs, clusters: Clusters) -> None:
    """Rows are what the definition says; the clusters know who is a hub."""
    distances = average_distances(clusters)
    scale = np.max(distances, where=np.isfinite(distances), initial=0.0)
    assert set(np.flatnonzero(clusters.hubs)) == set(hubs.slots.tolist())
    assert len(set(hubs.slots.tolist())) == len(hubs.slots)
    np.testing.assert_allclose(hubs.rows, distances[hubs.slots], rtol=1e-10, atol=1e-14 * scale)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_rows_stay_true_through_any_merges(seed: int) -> None:
    rng = np.random.default_rng([seed, 3])
    clusters = singletons(seed)
    hubs = Hubs(clusters)
    for _ in range(6):
        others = rng.permutation(np.flatnonzero(clusters.listed))
        hubs.add(others[: min(rng.integers(0, 4), hubs.room)])
        assert_true(hubs, clusters)
        into, dropped = random_pairs(clusters, rng)
        hubs.merge(into, dropped)
        clusters.merge(into, dropped)
        assert_true(hubs, clusters)
        if rng.random() < 0.4:
            hubs.compact(*clusters.compact())
            assert_true(hubs, clusters)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_slots_learn_of_nearer_hubs_and_hubs_of_their_nearest(seed: int) -> None:
    clusters = singletons(seed)
    distances = average_distances(clusters)
    count = len(distances)
    hubs = Hubs(clusters)
    hubs.add(np.arange(0, count, 7)[: hubs.room])
    listed = np.flatnonzero(clusters.listed)
    nearest, known = np.full(count, -1), np.full(count, np.inf)
    if len(listed) > 1:
        nearest[listed] = listed[distances[np.ix_(listed, listed)].argmin(axis=1)]
        known[listed] = distances[listed, nearest[listed]]
    hubs.nearer(nearest, known)
    np.testing.assert_allclose(known, distances.min(axis=1), rtol=1e-12)
    np.testing.assert_allclose(distances[np.arange(count), nearest], known, rtol=1e-12)
    np.testing.assert_allclose(hubs.distances(), distances[hubs.slots].min(axis=0), rtol=1e-12)


def test_room_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs_module, "MOST", 2)
    hubs = Hubs(singletons(0))
    assert hubs.room == 2
    hubs.add(np.array([1]))
    assert hubs.room == 1
    hubs.add(np.array([0]))
    assert hubs.room == 0


def test_no_hubs_know_nothing() -> None:
    hubs = Hubs(singletons(0))
    assert np.isinf(hubs.distances()).all()
