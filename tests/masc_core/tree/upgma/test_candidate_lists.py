from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from masc_core.tree.upgma.candidate_lists import (
    Lists,
    insert,
    new_bounded_list,
    store_list,
    truncate,
)

NODES = np.arange(100, 150)


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 6), st.integers(0, 10))
def test_a_stored_list_is_the_nearest_and_says_what_it_left_out(
    distances: list[int], width: int, lower_bound: int
) -> None:
    bounded = new_bounded_list(width + 1, float(lower_bound))
    for j, distance in enumerate(distances):
        insert(bounded, NODES, 30, j, float(distance))
        truncate(bounded, width)
    lists = Lists(
        np.zeros((1, width), np.int32), np.zeros((1, width)), np.zeros(1, np.int32), np.zeros(1)
    )
    store_list(bounded, lists, 0)
    kept = lists.distances[0, : lists.lengths[0]]
    eligible = sorted(distance for distance in distances if distance <= lower_bound)
    assert kept.tolist() == eligible[: min(width, len(kept))]
    left_out = set(range(len(distances))) - set(lists.ids[0, : lists.lengths[0]].tolist())
    assert all(distances[j] >= lists.lower_bound[0] for j in left_out)
    assert all(kept <= lists.lower_bound[0])
    if not left_out:
        assert lists.lower_bound[0] == lower_bound


def test_equal_distances_are_in_one_order_from_both_ends() -> None:
    pairs = [(i, j) for i in range(8) for j in range(8) if i != j]
    order = {}
    for i in range(8):
        bounded = new_bounded_list(8, np.inf)
        for j in np.random.default_rng(i).permutation(8):
            if j != i:
                insert(bounded, NODES, i, int(j), 1.0)
        order[i] = bounded.ids[:7].tolist()
    first = {frozenset((i, order[i][0])) for i in order}
    mutual = [(i, j) for i, j in pairs if order[i][0] == j and order[j][0] == i]
    assert mutual  # one order of all pairs has a least one
    assert len(first) > 1  # and it is not the order of the ids
