from __future__ import annotations

import numpy as np

from masc_core.tree.upgma.history import History


def test_merges_come_out_by_height_and_nodes_follow() -> None:
    history = History(5)
    far = history.note(np.array([3]), np.array([4]), np.array([7.0]))
    near = history.note(np.array([1, 0]), np.array([0, 0]), np.array([2.0, 0.0]))[:1]
    assert far.tolist() == [5]
    assert near.tolist() == [6]


def test_linkage_is_scipys_convention() -> None:
    history = History(4)
    high = history.note(np.array([2]), np.array([3]), np.array([5.0]))
    low = history.note(np.array([1]), np.array([0]), np.array([1.0]))
    history.note(high, low, np.array([6.0]))
    assert history.linkage().tolist() == [[0, 1, 1, 2], [2, 3, 5, 2], [4, 5, 6, 4]]


def test_rounding_cannot_put_a_merge_below_its_parts() -> None:
    history = History(3)
    part = history.note(np.array([0]), np.array([1]), np.array([1.0]))
    history.note(part, np.array([2]), np.array([1.0 - 1e-16 * 2]))
    assert history.linkage().tolist() == [[0, 1, 1, 2], [2, 3, 1, 3]]
