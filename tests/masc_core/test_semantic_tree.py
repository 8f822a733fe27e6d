from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster import hierarchy

from masc_core.prior import ClusterMap
from masc_core.semantic_tree import LeafOrder
from masc_core.tree import SemanticTree
from tests.prior_trees import random_order, random_tree

trees = st.builds(random_tree, st.integers(2, 40), st.integers(0, 1000))


@given(trees)
def test_leaves_stand_as_scipy_puts_them(tree: SemanticTree) -> None:
    order = LeafOrder.of(tree)
    assert order.codes.tolist() == hierarchy.leaves_list(order.tree.linkage).tolist()


def test_a_node_is_where_its_leaves_are() -> None:
    order = random_order(30)
    root, nodes = hierarchy.to_tree(order.tree.linkage, rd=True)
    assert root.id == 58
    for node in nodes:
        start, size = order.starts[node.id], order.sizes[node.id]
        assert order.codes[start : start + size].tolist() == node.pre_order()
        assert order.heights[node.id] == node.dist


def test_sorts_codes_by_their_places() -> None:
    order = random_order(20)
    codes = [3, 17, 0, 8]
    places = order.codes.tolist()
    assert order.sort(codes).tolist() == sorted(codes, key=places.index)


@pytest.mark.parametrize("num_clusters", [1, 2, 9, 25])
def test_every_cluster_of_a_cut_is_a_branch(num_clusters: int) -> None:
    order = random_order(25)
    prior = order.tree.cut(num_clusters)
    for number, node in enumerate(order.branches(prior).tolist()):
        under = order.codes[order.starts[node] : order.starts[node] + order.sizes[node]]
        assert sorted(under) == np.flatnonzero(prior.labels == number).tolist()


def test_a_cluster_that_is_no_branch_has_none() -> None:
    order = random_order(25)
    first, last = order.codes[0], order.codes[-1]
    apart = np.arange(25)
    apart[last] = apart[first]
    prior = ClusterMap.from_labels(apart)
    expected = np.where(prior.sizes == 1, 0, -1)
    assert np.array_equal(np.sign(order.branches(prior)).clip(max=0), expected)


def test_a_branch_is_not_known_by_its_first_leaf_and_size_alone() -> None:
    order = random_order(25)
    place = int(order.starts[25])  # where the first merge of two codes stands
    assert order.sizes[25] == 2
    labels = np.arange(25)
    labels[order.codes[place + 2]] = labels[order.codes[place]]
    prior = ClusterMap.from_labels(labels)
    assert order.branches(prior)[prior.sizes == 2].tolist() == [-1]


def test_neighbours_that_join_later_are_no_branch() -> None:
    order = LeafOrder.of(random_tree(25))
    one_off = np.zeros(25, dtype=np.int64)
    one_off[order.codes[-1]] = 1  # 24 neighbours: a branch only if the last leaf joins last
    prior = ClusterMap.from_labels(one_off)
    joins_last = int(order.tree.linkage[-1, 1]) == int(order.codes[-1])
    assert (order.branches(prior)[prior.labels[order.codes[0]]] >= 0) == joins_last
    assert not joins_last
