from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy
from scipy.spatial import distance

from masc_core.errors import ConfigError
from masc_core.prior import ClusterMap
from masc_core.tree import Linkage, SemanticTree, build_tree
from tests.masc_core.tree.upgma.oracles import Rows, assert_greedy


@st.composite
def codebooks(draw: st.DrawFn, max_rows: int = 12) -> Rows:
    """Small codebooks: Gaussian rows, or rows on a coarse grid with many ties and duplicates."""
    shape = (draw(st.integers(2, max_rows)), draw(st.integers(1, 4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        return rng.normal(size=shape)
    return rng.integers(0, draw(st.integers(1, 3)), size=shape, endpoint=True).astype(float)


def merge_order(tree: SemanticTree) -> list[tuple[int, int, float, float]]:
    return [(int(a), int(b), height, size) for a, b, height, size in tree.linkage.tolist()]


@settings(max_examples=150, deadline=None)
@given(codebooks(max_rows=40), st.sampled_from(["average", "single", "complete"]))
def test_every_merge_is_a_true_minimum_at_its_moment(rows: Rows, linkage: Linkage) -> None:
    assert_greedy(rows, build_tree(rows, linkage).linkage, linkage)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 60), st.integers(1, 9), st.sampled_from(["average", "single", "complete"]))
def test_the_tree_is_scipys_where_there_are_no_ties(
    num_codes: int, dimensions: int, linkage: Linkage
) -> None:
    rows = np.random.default_rng([num_codes, dimensions]).normal(size=(num_codes, dimensions))
    oracle = hierarchy.linkage(distance.pdist(rows), linkage)
    np.testing.assert_allclose(build_tree(rows, linkage).linkage, oracle, rtol=1e-9)


@pytest.mark.parametrize("linkage", ["average", "single", "complete"])
@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_the_unit_of_the_rows_does_not_matter(linkage: Linkage, unit: float) -> None:
    rows = np.random.default_rng(4).normal(size=(50, 3))
    scaled, tree = build_tree(rows * unit, linkage), build_tree(rows, linkage)
    np.testing.assert_allclose(scaled.heights / unit, tree.heights, rtol=1e-12)
    assert np.array_equal(scaled.linkage[:, :2], tree.linkage[:, :2])


@settings(max_examples=100, deadline=None)
@given(codebooks(max_rows=20))
def test_cut_gives_exactly_k_clusters_numbered_by_lowest_code(rows: Rows) -> None:
    tree = build_tree(rows)
    coarser: ClusterMap | None = None
    for num_clusters in range(1, len(rows) + 1):
        prior = tree.cut(num_clusters)
        assert prior.num_clusters == num_clusters == len(set(prior.labels.tolist()))
        lowest = [prior.labels.tolist().index(cluster) for cluster in range(num_clusters)]
        assert lowest == sorted(lowest)
        assert prior.sizes.min() >= 1
        assert prior.sizes.sum() == prior.num_codes == len(rows)
        if coarser is not None:  # the partitions are nested
            assert len(set(zip(prior.labels, coarser.labels, strict=True))) == num_clusters
        coarser = prior


def test_known_tree() -> None:
    tree = build_tree(np.array([[0.0], [10.0], [1.0], [12.0]]))
    assert merge_order(tree) == [(0, 2, 1.0, 2.0), (1, 3, 2.0, 2.0), (4, 5, 10.5, 4.0)]
    assert tree.num_codes == 4
    assert [tree.cut(k).labels.tolist() for k in (1, 2, 3, 4)] == [
        [0, 0, 0, 0],
        [0, 1, 0, 1],
        [0, 1, 0, 2],
        [0, 1, 2, 3],
    ]


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_equal_rows_all_merge_at_height_zero(value: float) -> None:
    tree = build_tree(np.full((9, 3), value))
    assert not tree.heights.any()
    for num_clusters in range(1, 10):
        assert tree.cut(num_clusters).num_clusters == num_clusters


def test_tensors_are_codebooks_and_bad_ones_are_refused() -> None:
    rows = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    expected = build_tree(rows.double().numpy())
    assert np.array_equal(build_tree(rows.requires_grad_()).linkage, expected.linkage)
    with pytest.raises(ValueError, match="row 0 has a NaN or an infinity"):
        build_tree(torch.tensor([[0.0, -torch.inf], [1.0, 0.0]]))


def test_tree_does_not_change_its_input_or_itself() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 2))
    before = rows.copy()
    tree = build_tree(rows)
    tree.cut(2)
    assert np.array_equal(rows, before)
    with pytest.raises(ValueError, match="read-only"):
        tree.linkage[0, 0] = 3


def test_options_not_offered_are_refused() -> None:
    with pytest.raises(ValueError, match="linkage 'median' is not offered"):
        build_tree(np.eye(3), linkage="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="average linkage is not built on the device 'tpu'"):
        build_tree(np.eye(3), device="tpu")
    with pytest.raises(ValueError, match="single linkage is not built on the device 'cuda'"):
        build_tree(np.eye(3), linkage="single", device="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="'cuda' is not on this machine"):
        build_tree(np.eye(3), device="cuda")


@pytest.mark.parametrize(
    ("linkage", "missing"), [("average", "numba"), ("single", "fastcluster"), ("complete", "scipy")]
)
def test_what_is_not_installed_is_named(
    linkage: Linkage, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [
        name for name in sys.modules if name.startswith(("masc_core.tree.upgma", missing))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf"needs {missing}: pip install 'masc\[training\]'"):
        build_tree(np.eye(3), linkage=linkage)


@pytest.mark.parametrize("linkage", ["single", "ward"])
def test_other_linkages_are_scipys_and_report_their_end(linkage: Linkage) -> None:
    seen: list[tuple[int, int, str]] = []
    rows = np.random.default_rng(0).normal(size=(1_029, 2))
    tree = build_tree(rows, linkage, report=lambda *progress: seen.append(progress))
    oracle = hierarchy.linkage(distance.pdist(rows), linkage)
    np.testing.assert_allclose(tree.linkage, oracle, rtol=1e-12)
    assert seen == [(1_028, 1_028, "merges")]
