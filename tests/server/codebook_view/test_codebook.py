from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import to_tree

from masc_core.prior import ClusterMap
from masc_core.semantic_tree import SemanticTree
from server.codebook_view.codebook import Codebook
from tests.prior_trees import random_tree
from tests.stopwatch import Stopwatch

NUM_CODES, NUM_CLUSTERS = 60, 20
TREE = random_tree(NUM_CODES)
CUT = Codebook(TREE, TREE.cut(NUM_CLUSTERS))
OTHER = Codebook(TREE, ClusterMap.from_labels(np.arange(NUM_CODES) % 7))
_, NODES = to_tree(TREE.linkage, rd=True)


@pytest.mark.parametrize("node", range(2 * NUM_CODES - 1))
def test_branches_are_scipys(node: int) -> None:
    branch = CUT.branch(node, NUM_CODES)
    expected = NODES[node]
    assert branch.codes == expected.pre_order()
    assert (branch.size, branch.height) == (expected.count, expected.dist)
    labels = set(CUT.prior.labels[branch.codes].tolist())
    assert branch.num_clusters == len(labels)
    assert branch.cluster == (labels.pop() if len(labels) == 1 else None)
    below = [child.id for child in (expected.left, expected.right) if child is not None]
    children = tuple(below)
    assert CUT.children(node) == children
    assert all(CUT.ancestors(child, 1) == [node] for child in children)
    above = CUT.ancestors(node, NUM_CODES)
    assert above[-1:] == ([CUT.root] if node != CUT.root else [])
    assert above == sorted(above)
    assert CUT.order.depths[node] == len(above)


def test_clusters_of_a_cut_are_branches() -> None:
    assert CUT.cut_height() == TREE.heights[NUM_CODES - NUM_CLUSTERS - 1]
    for number in range(NUM_CLUSTERS):
        cluster = CUT.cluster(number)
        assert sorted(cluster.codes) == np.flatnonzero(CUT.prior.labels == number).tolist()
        assert cluster.size == len(cluster.codes)
        assert cluster.node is not None
        assert NODES[cluster.node].pre_order() == cluster.codes
        assert cluster.height == NODES[cluster.node].dist


def test_clusters_of_another_prior_are_none() -> None:
    assert OTHER.cut_height() is None
    cluster = OTHER.cluster(3)
    assert (cluster.node, cluster.height) == (None, None)
    assert sorted(cluster.codes) == list(range(3, NUM_CODES, 7))


def test_branches_of_a_prior_that_is_no_cut_hold_as_many_clusters_as_their_codes() -> None:
    for node in range(2 * NUM_CODES - 1):
        branch = OTHER.branch(node, NUM_CODES)
        assert branch.num_clusters == len({code % 7 for code in branch.codes})
        assert branch.cluster == (branch.codes[0] % 7 if branch.num_clusters == 1 else None)


def test_a_large_tree_without_balance_keeps_nobody_waiting() -> None:
    num_codes = 200_000
    merges = np.arange(num_codes - 1)
    linkage = np.stack([merges + num_codes - 1, merges + 1, 0.0 * merges, merges + 2.0], axis=1)
    linkage[0, 0] = 0
    book = Codebook(SemanticTree(linkage), ClusterMap.identity(num_codes))
    assert book.order.depths[0] == num_codes - 1
    with Stopwatch() as watch:
        for _ in range(20):
            assert book.branch(book.root, 5).num_clusters == num_codes
            assert book.ancestors(0, 2) == [num_codes, num_codes + 1]
            assert len(book.clusters("size")) == num_codes
    assert watch.seconds < 2


def test_sizes_add_up() -> None:
    assert sum(count for _, count in CUT.sizes()) == NUM_CLUSTERS
    assert sum(size * count for size, count in CUT.sizes()) == NUM_CODES


def test_orders_of_clusters() -> None:
    for book in (CUT, OTHER):
        for sort in ("tree", "size", "height"):
            numbers = book.clusters(sort).tolist()
            assert sorted(numbers) == list(range(book.prior.num_clusters))
    sizes = CUT.prior.sizes[CUT.clusters("size")]
    assert (np.diff(sizes) <= 0).all()
    heights = [CUT.cluster(number).height or 0.0 for number in CUT.clusters("height").tolist()]
    assert heights == sorted(heights, reverse=True)
    leaves = [code for number in CUT.clusters().tolist() for code in CUT.cluster(number).codes]
    assert leaves == CUT.order.codes.tolist()


def test_small_clusters_can_be_left_out() -> None:
    kept = CUT.clusters("tree", 3).tolist()
    assert sorted(kept) == np.flatnonzero(CUT.prior.sizes >= 3).tolist()
    assert CUT.clusters("size", NUM_CODES).tolist() == []


def test_few_codes_stand_for_many() -> None:
    some = CUT.branch(CUT.root, 5).codes
    assert len(set(some)) == 5
    assert (some[0], some[-1]) == (CUT.order.codes[0], CUT.order.codes[-1])
    assert CUT.branch(CUT.root, NUM_CODES).codes == CUT.order.codes.tolist()


def test_merges_inside_a_branch_come_highest_first() -> None:
    for node in (CUT.root, NUM_CODES + 30, NUM_CODES, 3):
        inside = CUT.merges_below(node, NUM_CODES)
        expected = [n.id for n in NODES[NUM_CODES:] if set(n.pre_order()) <= _codes(node)]
        assert inside == sorted(expected, reverse=True)
        assert CUT.merges_below(node, 2) == inside[:2]


def _codes(node: int) -> set[int]:
    return set(NODES[node].pre_order())
