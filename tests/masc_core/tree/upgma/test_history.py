from __future__ import annotations

import numpy as np

from masc_core.tree.upgma.history import History, distinct_rows


def test_merges_come_out_by_height_and_nodes_follow() -> None:
    history = History(5)
    far = history.append(np.array([3]), np.array([4]), np.array([7.0]))
    near = history.append(np.array([1, 0]), np.array([0, 0]), np.array([2.0, 0.0]))[:1]
    assert far.tolist() == [5]
    assert near.tolist() == [6]


def test_linkage_is_scipys_convention() -> None:
    history = History(4)
    high = history.append(np.array([2]), np.array([3]), np.array([5.0]))
    low = history.append(np.array([1]), np.array([0]), np.array([1.0]))
    history.append(high, low, np.array([6.0]))
    assert history.linkage().tolist() == [[0, 1, 1, 2], [2, 3, 5, 2], [4, 5, 6, 4]]


def test_rounding_cannot_put_a_merge_below_its_parts() -> None:
    history = History(3)
    part = history.append(np.array([0]), np.array([1]), np.array([1.0]))
    history.append(part, np.array([2]), np.array([1.0 - 1e-16 * 2]))
    assert history.linkage().tolist() == [[0, 1, 1, 2], [2, 3, 1, 3]]


def test_equal_rows_are_merged_at_zero() -> None:
    rows = np.array([[1.0, 2], [0, 0], [1, 2], [-0.0, 0], [3, 3], [1, 2]])
    history = History(6)
    distinct = distinct_rows(rows, history)
    assert distinct.points.tolist() == [[1, 2], [0, 0], [3, 3]]  # by their first codes
    assert distinct.weights.tolist() == [3, 2, 1]
    assert history.num_merges == 3
    history.append(distinct.nodes[[0]], distinct.nodes[[1]], np.array([2.0]))
    history.append(np.array([9]), distinct.nodes[[2]], np.array([3.0]))
    linkage = history.linkage()
    assert linkage[:, 2].tolist() == [0, 0, 0, 2, 3]
    assert linkage[3, 3] == 5


def test_rows_that_differ_are_left_alone() -> None:
    rows = np.random.default_rng(0).normal(size=(7, 2))
    history = History(7)
    distinct = distinct_rows(rows, history)
    assert np.array_equal(distinct.points, rows)
    assert np.array_equal(distinct.nodes, np.arange(7))
    assert history.num_merges == 0
