from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masc_core.tree.upgma import distance_rows as module
from masc_core.tree.upgma.clusters import Clusters
from masc_core.tree.upgma.distance_rows import DistanceRows
from tests.masc_core.tree.upgma.moments import average_distances, random_pairs, singletons


def assert_true(rows: DistanceRows, clusters: Clusters) -> None:
    """Rows are what the definition says; the clusters know who has one."""
    distances = average_distances(clusters)
    scale = np.max(distances, where=np.isfinite(distances), initial=0.0)
    assert sorted(np.flatnonzero(clusters.has_row)) == sorted(rows.slots.tolist())
    np.testing.assert_allclose(rows.rows, distances[rows.slots], rtol=1e-10, atol=1e-14 * scale)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_rows_stay_true_through_any_merges(seed: int) -> None:
    rng = np.random.default_rng([seed, 3])
    clusters = singletons(seed)
    rows = DistanceRows(clusters)
    for _ in range(6):
        rows.add(rng.permutation(np.flatnonzero(clusters.listed))[: rng.integers(0, 4)])
        assert_true(rows, clusters)
        into, dropped = random_pairs(clusters, rng)
        rows.merge(into, dropped)
        clusters.merge(into, dropped)
        assert_true(rows, clusters)
        if rng.random() < 0.4:
            rows.compact(*clusters.compact())
            assert_true(rows, clusters)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_slots_learn_of_nearer_rows_and_rows_of_their_nearest(seed: int) -> None:
    clusters = singletons(seed)
    distances = average_distances(clusters)
    count = len(distances)
    rows = DistanceRows(clusters)
    rows.add(np.arange(0, count, 7))
    listed = np.flatnonzero(clusters.listed)
    nearest, known = np.full(count, -1), np.full(count, np.inf)
    if len(listed) > 1:
        nearest[listed] = listed[distances[np.ix_(listed, listed)].argmin(axis=1)]
        known[listed] = distances[listed, nearest[listed]]
    rows.update_nearest(nearest, known)
    np.testing.assert_allclose(known, distances.min(axis=1), rtol=1e-12)
    np.testing.assert_allclose(distances[np.arange(count), nearest], known, rtol=1e-12)
    np.testing.assert_allclose(rows.least(), distances[rows.slots].min(axis=0), rtol=1e-12)


def test_no_more_rows_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 2)
    rows = DistanceRows(singletons(0))
    assert rows.add(np.array([1])).tolist() == [1]
    assert rows.add(np.array([0, 2])).tolist() == [0]
    assert rows.slots.tolist() == [1, 0]
