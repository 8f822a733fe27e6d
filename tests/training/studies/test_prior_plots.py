from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from scipy.cluster import hierarchy

from masc_core.arrays import IntArray
from masc_core.prior import ClusterMap
from masc_core.semantic_tree import LeafOrder
from masc_core.tree import build_tree
from tests.prior_trees import random_order, random_patches
from training.studies.prior_plots import (
    PATCHES_PER_BRANCH,
    TreeTop,
    branch_strip,
    dendrogram,
    describe_sizes,
    draw_sizes,
    size_histogram,
)


@pytest.mark.parametrize("num_branches", [2, 7, 25])
def test_the_top_is_the_one_that_scipy_draws(num_branches: int) -> None:
    order = random_order(25)
    top = TreeTop.of(order, num_branches)
    drawn = hierarchy.dendrogram(
        order.tree.linkage, p=num_branches, truncate_mode="lastp", no_plot=True
    )
    # SciPy writes a single leaf as its code, others as their number of leaves in brackets.
    labels = [f"({n})" if n > 1 else str(v) for v, n in sized(top, order.sizes)]
    assert labels == drawn["ivl"]
    theirs = sorted(
        (height[1], *sorted((place[0], place[-1])))
        for place, height in zip(drawn["icoord"], drawn["dcoord"], strict=True)
    )
    ours = sorted(
        (line[1, 0], *sorted((5 + 10 * line[0, 1], 5 + 10 * line[-1, 1]))) for line in top.lines
    )
    assert np.allclose(ours, theirs)


def sized(top: TreeTop, sizes: IntArray) -> list[tuple[int, int]]:
    return [(int(node), int(sizes[node])) for node in top.branches]


def test_lines_begin_and_end_at_the_heights_of_the_children() -> None:
    order = random_order(25)
    top = TreeTop.of(order, 7)
    children = order.tree.linkage[-6:, :2].astype(int)
    assert np.array_equal(top.lines[:, [0, 3], 0], order.heights[children])
    assert np.array_equal(top.lines[:, 1:3, 0], np.repeat(order.tree.heights[-6:, None], 2, axis=1))
    assert np.array_equal(top.lines[:, 0, 1], top.lines[:, 1, 1])
    assert np.array_equal(top.lines[:, 2, 1], top.lines[:, 3, 1])


def test_a_strip_shows_codes_of_the_branch_spread_over_its_leaves() -> None:
    order, patches = random_order(100), random_patches(100)
    root = 198
    strip = branch_strip(order, patches, root)
    assert strip.shape == (10, PATCHES_PER_BRANCH * 10, 3)
    assert np.array_equal(strip[:8, :8], patches[order.codes[0]])
    assert np.array_equal(strip[:8, -10:-2], patches[order.codes[-1]])
    code = branch_strip(order, patches, 5)
    assert np.array_equal(code[:8, :8], patches[5])
    assert (code[:, 8:] == 255).all()


def test_the_picture_is_the_same_every_time() -> None:
    order, patches = random_order(30), random_patches(30)
    png = dendrogram(order, patches, 8)
    assert png == dendrogram(order, patches, 8)
    assert png != dendrogram(order, patches, 9)
    with Image.open(io.BytesIO(png)) as image:
        assert "Software" not in image.info
        assert len(np.unique(np.asarray(image))) > 50


def test_more_branches_than_codes_are_all_codes() -> None:
    order, patches = random_order(5), random_patches(5)
    assert dendrogram(order, patches, 32) == dendrogram(order, patches, 5)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_two_codes_are_enough_even_equal_ones(spread: float) -> None:
    order = LeafOrder.of(build_tree(np.array([[0.0], [spread]])))
    assert dendrogram(order, random_patches(2), 2).startswith(b"\x89PNG")


SKEWED = ClusterMap.from_labels(np.concatenate([np.arange(20), np.repeat([20, 21], 40)]))


@pytest.mark.parametrize(
    "prior",
    [SKEWED, ClusterMap.identity(9), ClusterMap.from_labels(np.zeros(3000, int))],
    ids=["skewed", "flat", "one cluster"],
)
def test_any_prior_is_drawn_the_same_every_time(prior: ClusterMap) -> None:
    png = size_histogram(prior)
    assert png == size_histogram(prior)
    with Image.open(io.BytesIO(png)) as image:
        assert "Software" not in image.info
        teal = np.asarray(image.convert("RGB")) == (0x0F, 0x6A, 0x72)
        assert teal.all(axis=2).any()


def test_a_stem_ends_at_the_number_of_clusters_of_its_size() -> None:
    axes = Figure().subplots()
    draw_sizes(axes, SKEWED)
    assert np.array_equal(axes.lines[0].get_xydata(), [[1, 20], [40, 2]])
    assert axes.get_xlim()[0] < 1
    assert axes.get_xlim()[1] > 40
    assert axes.get_ylim()[0] < 1
    assert axes.get_ylim()[1] > 20


def test_the_title_states_the_extremes() -> None:
    text = describe_sizes(SKEWED)
    assert "V = 100 codes in K = 22 clusters" in text
    assert "40 in the largest" in text
    assert "20 hold a single code: 90.9% of the clusters, 20.0% of the codes" in text
