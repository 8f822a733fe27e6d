from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy
from scipy.spatial import distance

from masc_core.errors import ArtifactError, ConfigError
from masc_core.prior import ClusterMap
from masc_core.tree import Linkage, SemanticTree, build_tree

ROOT = Path(__file__).parents[3]

Rows = npt.NDArray[np.float64]


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


@settings(max_examples=100, deadline=None)
@given(codebooks(max_rows=40), st.sampled_from(["average", "single", "complete"]))
def test_every_merge_is_a_true_minimum_at_its_moment(rows: Rows, linkage: Linkage) -> None:
    tree = build_tree(rows, linkage)
    pairwise = distance.squareform(distance.pdist(rows))
    reductions: dict[Linkage, Callable[[Rows], np.float64]] = {
        "average": np.mean,
        "single": np.min,
        "complete": np.max,
    }
    clusters = {i: [i] for i in range(len(rows))}

    def between(a: int, b: int) -> float:
        return float(reductions[linkage](pairwise[np.ix_(clusters[a], clusters[b])]))

    for i, (a, b, height, size) in enumerate(merge_order(tree)):
        closest = min(between(x, y) for x, y in combinations(clusters, 2))
        assert between(a, b) == pytest.approx(height, rel=1e-9, abs=1e-12)
        assert height == pytest.approx(closest, rel=1e-9, abs=1e-12)
        clusters[len(rows) + i] = clusters.pop(a) + clusters.pop(b)
        assert size == len(clusters[len(rows) + i])
    assert len(clusters) == 1


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


def test_equal_rows_all_merge_at_height_zero() -> None:
    tree = build_tree(np.ones((9, 3)))
    assert not tree.heights.any()
    for num_clusters in range(1, 10):
        assert tree.cut(num_clusters).num_clusters == num_clusters


def test_cut_of_a_tree_as_deep_as_it_can_be() -> None:
    num_codes = 16_384
    merge = np.arange(num_codes - 1)
    nodes = np.stack([np.where(merge == 0, 0, num_codes + merge - 1), merge + 1], axis=1)
    tree = SemanticTree(np.column_stack([nodes, merge + 1.0, merge + 2.0]))
    prior = tree.cut(8_192)
    assert prior.labels.tolist() == [0] * 8_193 + list(range(1, 8_192))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_tensors_and_arrays_give_the_same_tree(dtype: torch.dtype) -> None:
    codebook = (torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    codebook.requires_grad_(codebook.is_floating_point())
    expected = build_tree(codebook.detach().double().numpy())
    assert np.array_equal(build_tree(codebook).linkage, expected.linkage)


def test_tree_does_not_change_its_input_or_itself() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 2))
    before = rows.copy()
    tree = build_tree(rows)
    tree.cut(2)
    assert np.array_equal(rows, before)
    with pytest.raises(ValueError, match="read-only"):
        tree.linkage[0, 0] = 3


@pytest.mark.parametrize(
    ("codebook", "message"),
    [
        (np.zeros(4), r"has the shape \(V, E\), got \(4,\)"),
        (np.zeros((2, 2, 2)), r"has the shape \(V, E\)"),
        (np.zeros((3, 0)), r"has the shape \(V, E\), got \(3, 0\)"),
        (np.zeros((1, 4)), "at least two rows, got 1"),
        (np.zeros((0, 4)), "at least two rows, got 0"),
        (
            np.array([[0.0], [1.0], [np.nan], [np.inf]]),
            r"row 2 has a NaN or an infinity \(2 such\)",
        ),
        (torch.tensor([[0.0, -torch.inf], [1.0, 0.0]]), "row 0 has a NaN or an infinity"),
        (np.array([["a"], ["b"]]), "holds real numbers"),
        (np.array([[1j], [2j]]), "holds real numbers"),
    ],
)
def test_bad_codebooks_are_refused(codebook: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_tree(codebook)


@pytest.mark.parametrize("num_clusters", [-1, 0, 6])
def test_k_outside_the_codes_is_refused(num_clusters: int) -> None:
    with pytest.raises(ValueError, match=rf"K must be in 1\.\.5, got {num_clusters}"):
        build_tree(np.arange(5.0)[:, None]).cut(num_clusters)


def test_options_not_offered_are_refused() -> None:
    with pytest.raises(ValueError, match="linkage 'ward' is not offered"):
        build_tree(np.eye(3), linkage="ward")  # type: ignore[arg-type]
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


def test_progress_of_single_linkage_ends_at_its_total() -> None:
    seen: list[tuple[int, int, str]] = []
    rows = np.random.default_rng(0).normal(size=(1_029, 2))
    tree = build_tree(rows, "single", report=lambda *progress: seen.append(progress))
    oracle = hierarchy.linkage(distance.pdist(rows), "single")
    np.testing.assert_allclose(tree.linkage, oracle, rtol=1e-12)
    assert seen == [(1_028, 1_028, "spanning tree")]


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
def test_arrays_that_are_no_linkage_are_refused(linkage: Rows) -> None:
    with pytest.raises(ValueError, match="a linkage"):
        SemanticTree(linkage)
