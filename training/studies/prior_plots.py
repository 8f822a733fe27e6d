"""Two pictures of a prior: the top of its tree, and the sizes of its clusters.

Legend: V codes, K clusters, n branches, S pixels a side of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from masc_core.arrays import FloatArray, IntArray
from masc_core.images import Pixels
from masc_core.prior import ClusterMap
from masc_core.semantic_tree import LeafOrder
from training.plot_png import new_figure, png_bytes

COLOUR = "#0f6a72"
PATCHES_PER_BRANCH = 24
INCHES_PER_BRANCH = 0.3
GAP = 2  # pixels between patches


@dataclass(frozen=True, slots=True, eq=False)
class TreeTop:
    """The last n-1 merges of a tree.

    Attributes
    ----------
    branches : int64 (n,), the nodes that they join, in the order of the leaves
    lines : float64 (n-1, 4, 2), (height, row) of the corners of each merge: from its first child
        along to its height, across, and back to the second child; branch i lies in row i
    """

    branches: IntArray
    lines: FloatArray

    @classmethod
    def of(cls, order: LeafOrder, num_branches: int) -> TreeTop:
        """Cut a tree of V codes into ``num_branches`` branches, 2..V."""
        num_codes, linkage = order.tree.num_codes, order.tree.linkage
        first_merge = num_codes - num_branches
        children = linkage[first_merge:, :2].astype(np.int64)  # (n-1, 2)
        below = children[children < num_codes + first_merge]
        branches = below[np.argsort(order.starts[below])]
        rows = np.empty(2 * num_codes - 1)
        rows[branches] = np.arange(num_branches)
        lines = np.empty((num_branches - 1, 4, 2))
        for i, pair in enumerate(children):
            node = num_codes + first_merge + i
            rows[node] = rows[pair].mean()
            lines[i, :, 0] = order.heights[[pair[0], node, node, pair[1]]]
            lines[i, :, 1] = np.repeat(rows[pair], 2)
        return cls(branches, lines)


def dendrogram(order: LeafOrder, patches: Pixels, num_branches: int) -> bytes:
    """PNG of the last merges of a tree, with codes of every branch that they join.

    The root is at the left, a merge is a vertical line at its height, and each branch ends at its
    own height, with the number of its codes and some of them, evenly spaced among its leaves.

    Parameters
    ----------
    order : of the tree's leaves
    patches : uint8 (V, S, S, 3), the patch of each code
    num_branches : branches to show, at least 2; V where there are fewer codes
    """
    top = TreeTop.of(order, min(num_branches, order.tree.num_codes))
    figure = new_figure(14, 1.2 + INCHES_PER_BRANCH * len(top.branches))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(9, 10))
    _draw_lines(left, top, order)
    _draw_branches(right, top, order, patches)
    return png_bytes(figure)


def _draw_lines(axes: Axes, top: TreeTop, order: LeafOrder) -> None:
    axes.add_collection(LineCollection(list(top.lines), colors=COLOUR, linewidths=1.2))
    highest = top.lines[:, :, 0].max() or 1.0  # 0 where all codes are equal
    axes.set(xlim=(1.03 * highest, 0), ylim=(len(top.branches) - 0.5, -0.5), yticks=[])
    axes.set_xlabel("mean distance between the codes that are joined")
    axes.set_title(
        f"The last {len(top.lines):,} merges of {order.tree.num_codes:,} codes", loc="left"
    )
    axes.spines[["left", "right", "top"]].set_visible(False)


def _draw_branches(axes: Axes, top: TreeTop, order: LeafOrder, patches: Pixels) -> None:
    rows = [branch_strip(order, patches, node) for node in top.branches]
    axes.imshow(
        np.concatenate(rows),
        extent=(0, PATCHES_PER_BRANCH, len(rows) - 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
    )
    for row, node in enumerate(top.branches):
        axes.text(-0.3, row, f"{order.sizes[node]:,}", ha="right", va="center", fontsize=9)
    axes.set_axis_off()
    axes.set_title(f"Codes in each branch, and up to {PATCHES_PER_BRANCH} of them", loc="left")


def branch_strip(order: LeafOrder, patches: Pixels, node: int) -> Pixels:
    """Patches of a branch beside each other on white, (S + GAP, n * (S + GAP), 3)."""
    start, size = int(order.starts[node]), int(order.sizes[node])
    shown = np.linspace(start, start + size - 1, min(size, PATCHES_PER_BRANCH)).round().astype(int)
    step = patches.shape[1] + GAP
    strip = np.full((step, PATCHES_PER_BRANCH * step, 3), 255, np.uint8)
    tiles: npt.NDArray[np.uint8] = strip.reshape(step, PATCHES_PER_BRANCH, step, 3)
    for column, code in enumerate(order.codes[shown]):
        tiles[:-GAP, column, :-GAP] = patches[code]
    return strip


def size_histogram(prior: ClusterMap) -> bytes:
    """PNG of the number of clusters of each size, on two logarithmic axes."""
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    draw_sizes(axes, prior)
    axes.set_title(describe_sizes(prior), loc="left", fontsize=10)
    return png_bytes(figure)


def draw_sizes(axes: Axes, prior: ClusterMap) -> None:
    """Draw a stem for each size that occurs: a bar, one code wide, is too thin for large sizes."""
    sizes, counts = np.unique(prior.sizes, return_counts=True)
    axes.set(xscale="log", xlim=(0.8, 1.3 * sizes[-1]), yscale="log", ylim=(0.7, 2 * counts.max()))
    axes.vlines(sizes, 0.7, counts, color=COLOUR, linewidth=1.5)
    axes.plot(sizes, counts, "o", color=COLOUR, markersize=5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_locator(ticker.NullLocator())
        axis.set_minor_formatter(ticker.NullFormatter())
    axes.set(xlabel="codes in a cluster", ylabel="clusters")
    axes.grid(axis="y", color="#d5d6d3", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["right", "top"]].set_visible(False)


def describe_sizes(prior: ClusterMap) -> str:
    """Two lines: the numbers of codes and clusters, and how uneven the clusters are."""
    num_codes, num_clusters = prior.num_codes, prior.num_clusters
    singles = int(np.count_nonzero(prior.sizes == 1))
    return (
        f"V = {num_codes:,} codes in K = {num_clusters:,} clusters, {num_codes / num_clusters:.1f} "
        f"in the mean, {prior.sizes.max():,} in the largest\n"
        f"{singles:,} hold a single code: {singles / num_clusters:.1%} of the clusters, "
        f"{singles / num_codes:.1%} of the codes"
    )
