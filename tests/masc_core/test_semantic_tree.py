from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster import hierarchy

from masc_core.errors import ArtifactError
from masc_core.prior import ClusterMap
from masc_core.semantic_tree import LeafOrder
from masc_core.tree import SemanticTree, build_tree
from tests.prior_trees import random_order, random_tree

ROOT = Path(__file__).parents[2]

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


def test_chunks_are_neighbours_of_equal_number() -> None:
    order = random_order(24)
    for num_clusters in (1, 2, 6, 24):
        prior = order.chunks(num_clusters)
        expected = {frozenset(part) for part in order.codes.reshape(num_clusters, -1).tolist()}
        members = {frozenset(part) for part in prior.members.reshape(num_clusters, -1).tolist()}
        assert members == expected
    with pytest.raises(ValueError, match="a K that divides the 24 codes, got 5"):
        order.chunks(5)


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


def test_cut_of_a_tree_as_deep_as_it_can_be() -> None:
    num_codes = 16_384
    merge = np.arange(num_codes - 1)
    nodes = np.stack([np.where(merge == 0, 0, num_codes + merge - 1), merge + 1], axis=1)
    tree = SemanticTree(np.column_stack([nodes, merge + 1.0, merge + 2.0]))
    prior = tree.cut(8_192)
    assert prior.labels.tolist() == [0] * 8_193 + list(range(1, 8_192))


@pytest.mark.parametrize("num_clusters", [-1, 0, 6])
def test_k_outside_the_codes_is_refused(num_clusters: int) -> None:
    with pytest.raises(ValueError, match=rf"K must be in 1\.\.5, got {num_clusters}"):
        build_tree(np.arange(5.0)[:, None]).cut(num_clusters)


def test_round_trip(tmp_path: Path) -> None:
    tree = build_tree(np.random.default_rng(1).normal(size=(30, 3)))
    tree.save(tmp_path / "tree.npz")
    assert np.array_equal(SemanticTree.load(tmp_path / "tree.npz").linkage, tree.linkage)


def test_reading_a_tree_needs_neither_torch_nor_scipy(tmp_path: Path) -> None:
    path = tmp_path / "tree.npz"
    build_tree(np.array([[0.0], [5.0], [1.0]])).save(path)
    program = (
        "import sys; sys.modules.update(torch=None, scipy=None)\n"
        "from masc_core.tree import SemanticTree\n"
        f"print(*SemanticTree.load({str(path)!r}).cut(2).encode([2, 1]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout == "0 1\n"


GOOD = [[0.0, 1.0, 1.0, 2.0], [2.0, 3.0, 2.0, 3.0]]


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        ((0, 0), 0.5, "merge 0 joins a node that does not exist"),
        ((0, 1), -1.0, "merge 0 joins a node that does not exist"),
        ((0, 1), 3.0, "merge 0 joins a node that does not exist"),
        ((1, 1), 4.0, "merge 1 joins a node that does not exist"),
        ((1, 0), 1.0, "merge 1 joins a node that has been joined before"),
        ((0, 1), 0.0, "merge 0 joins a node that has been joined before"),
        ((1, 2), 0.5, "merge 1 is lower than the one before it"),
        ((0, 2), -1.0, "merge 0 is lower than the one before it, or negative"),
        ((1, 3), 4.0, "merge 1 has the wrong size"),
        ((1, 2), np.inf, "merge 1 has a NaN or an infinity"),
        ((0, 3), np.nan, "merge 0 has a NaN or an infinity"),
    ],
)
def test_files_that_hold_no_tree_are_refused(
    tmp_path: Path, at: tuple[int, int], value: float, message: str
) -> None:
    path = tmp_path / "tree.npz"
    linkage = np.array(GOOD)
    np.savez(path, linkage=linkage)
    assert SemanticTree.load(path).num_codes == 3
    linkage[at] = value
    np.savez(path, linkage=linkage)
    with pytest.raises(ArtifactError, match=message) as caught:
        SemanticTree.load(path)
    assert caught.value.path == str(path)


@pytest.mark.parametrize(
    "linkage", [np.zeros((2, 3)), np.zeros((0, 4)), np.zeros(4), np.array(GOOD, dtype=np.float32)]
)
def test_arrays_that_are_no_linkage_are_refused(linkage: npt.NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="a linkage"):
        SemanticTree(linkage)
