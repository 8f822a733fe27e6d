"""What every search promises: nothing outside its answer is nearer than it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masc_core.tree.upgma.clusters import Clusters
from masc_core.tree.upgma.search import (
    BoxSearch,
    MemberSearch,
    ProductSearch,
    Search,
    farthest,
    limit,
    offer,
    room_for,
)
from masc_core.tree.upgma.types import FloatArray, IntArray
from tests.masc_core.tree.upgma.moments import average_distances, some_moment


@pytest.mark.parametrize("wanted", [1, 2, 5, 40])
@given(
    distances=st.lists(st.integers(0, 20), min_size=1, max_size=70),
    block=st.integers(1, 64),
    own=st.integers(0, 69),
)
def test_keeps_the_nearest(wanted: int, distances: list[int], block: int, own: int) -> None:
    nearest = room_for(2, wanted)
    far = np.array(distances, float)
    for begin in range(0, len(far), block):
        part = far[begin : begin + block]
        offer(nearest, 1, own, part, len(part), begin)
    others = np.delete(far, own) if own < len(far) else far
    kept = nearest.distances[1, : nearest.counts[1]]
    assert sorted(kept) == sorted(others)[:wanted]
    ids = nearest.ids[1, : nearest.counts[1]]
    assert np.array_equal(far[ids], kept)
    assert own not in ids
    full = len(others) >= wanted
    assert limit(nearest, 1) == (max(kept) if full else np.inf)
    assert farthest(nearest)[1] == limit(nearest, 1)
    assert nearest.counts[0] == 0  # the other row


SEARCHES = (BoxSearch, ProductSearch, MemberSearch)


def answers(search: Search, rows: IntArray, wanted: int) -> dict[int, tuple[set[int], float]]:
    found: dict[int, tuple[set[int], float]] = {}
    for part in search.nearest(rows, wanted):
        for row, ids, count, outside in zip(
            part.rows, part.ids, part.counts, part.outside, strict=True
        ):
            found[int(row)] = (set(ids[:count].tolist()), float(outside))
    return found


def check(search: Search, clusters: Clusters, distances: FloatArray, wanted: int) -> None:
    alive = np.flatnonzero(clusters.listed)
    found = answers(search, alive, wanted)
    assert set(found) == set(alive.tolist())
    for row, (ids, outside) in found.items():
        assert row not in ids
        assert ids <= set(alive.tolist())
        assert len(ids) == min(wanted, len(alive) - 1)
        for other in set(alive.tolist()) - ids - {row}:
            assert distances[row, other] >= outside


@pytest.mark.parametrize("search", SEARCHES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), wanted=st.sampled_from([1, 3, 40]))
def test_nothing_outside_is_nearer(search: type[Search], seed: int, wanted: int) -> None:
    clusters = some_moment(seed)
    clusters.hubs[np.flatnonzero(clusters.alive)[: min(seed % 3, clusters.count - 1)]] = True
    check(search(clusters), clusters, average_distances(clusters), wanted)  # type: ignore[call-arg]


@pytest.mark.parametrize("search", SEARCHES)
def test_neighbours_far_from_all_others_are_told_apart(search: type[Search]) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200, 64)) + 1e5 * np.repeat([0, 1], 100)[:, None]
    order = np.arange(200)
    clusters = Clusters.singletons(points, np.ones(200), order, order)
    distances = average_distances(clusters)
    asked = search(clusters)  # type: ignore[call-arg]
    for rows in (order[:100], order[100:]):
        for row, (ids, outside) in answers(asked, rows, 8).items():
            nearest = int(np.argmin(distances[row]))
            assert nearest in ids
            assert distances[row, nearest] <= outside
