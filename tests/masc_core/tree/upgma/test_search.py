"""What every search promises: nothing outside its answer is nearer than it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masc_core.arrays import FloatArray, IntArray
from masc_core.tree.upgma.clusters import Clusters
from masc_core.tree.upgma.search import (
    BoxSearch,
    MemberSearch,
    ProductSearch,
    empty_heap,
    farthest,
    limit,
    offer,
)
from tests.masc_core.tree.upgma.moments import average_distances, clusters_of, some_moment

Search = BoxSearch | MemberSearch | ProductSearch
SEARCHES = (BoxSearch, ProductSearch, MemberSearch)


@pytest.mark.parametrize("wanted", [1, 2, 5, 40])
@settings(deadline=None)  # the first call compiles
@given(
    values=st.lists(st.integers(0, 20), min_size=1, max_size=70),
    block=st.integers(1, 64),
    own=st.integers(0, 69),
)
def test_keeps_the_nearest(wanted: int, values: list[int], block: int, own: int) -> None:
    heap = empty_heap(2, wanted)
    distances = np.array(values, float)
    for begin in range(0, len(distances), block):
        part = distances[begin : begin + block]
        offer(heap, 1, own, part, len(part), begin)
    others = np.delete(distances, own) if own < len(distances) else distances
    kept = heap.distances[1, : heap.counts[1]]
    assert sorted(kept) == sorted(others)[:wanted]
    ids = heap.ids[1, : heap.counts[1]]
    assert np.array_equal(distances[ids], kept)
    assert own not in ids
    full = len(others) >= wanted
    assert limit(heap, 1) == (max(kept) if full else np.inf)
    assert farthest(heap)[1] == limit(heap, 1)
    assert heap.counts[0] == 0  # the other row


def answers(search: Search, rows: IntArray, wanted: int) -> dict[int, tuple[set[int], float]]:
    answer: dict[int, tuple[set[int], float]] = {}
    for result in search.nearest(rows, wanted):
        for row, ids, count, lower_bound in zip(*result, strict=True):
            answer[int(row)] = (set(ids[:count].tolist()), float(lower_bound))
    return answer


def check(search: Search, clusters: Clusters, distances: FloatArray, wanted: int) -> None:
    listed = np.flatnonzero(clusters.listed)
    answer = answers(search, listed, wanted)
    assert set(answer) == set(listed.tolist())
    for row, (ids, lower_bound) in answer.items():
        assert row not in ids
        assert ids <= set(listed.tolist())
        assert len(ids) == min(wanted, len(listed) - 1)
        for other in set(listed.tolist()) - ids - {row}:
            assert distances[row, other] >= lower_bound


@pytest.mark.parametrize("search", SEARCHES)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), wanted=st.sampled_from([1, 3, 40]))
def test_nothing_outside_is_nearer(search: type[Search], seed: int, wanted: int) -> None:
    clusters = some_moment(seed)
    clusters.has_row[np.flatnonzero(clusters.alive)[: min(seed % 3, clusters.count - 1)]] = True
    check(search(clusters), clusters, average_distances(clusters), wanted)


@pytest.mark.parametrize("search", SEARCHES)
def test_neighbours_far_from_all_others_are_told_apart(search: type[Search]) -> None:
    points = np.random.default_rng(0).normal(size=(200, 64))
    points[100:] += 1e5
    clusters = clusters_of(points)
    distances = average_distances(clusters)
    far_off = clusters.points[:, 0] > 1e4
    asked = search(clusters)
    for rows in (np.flatnonzero(far_off), np.flatnonzero(~far_off)):
        for row, (ids, lower_bound) in answers(asked, rows, 8).items():
            nearest = int(np.argmin(distances[row]))
            assert nearest in ids
            assert distances[row, nearest] <= lower_bound
