"""Picture of cluster sizes: how many clusters hold 1, 2, 3, ... codes, on two logarithmic axes.

Legend: V codes, K clusters.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from masc_core.prior import ClusterMap
from training.plot_png import png_bytes

COLOUR = "#0f6a72"


def size_histogram(prior: ClusterMap) -> bytes:
    """PNG of the number of clusters of each size; the title states the extremes."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    draw_sizes(axes, prior)
    _name_axes(axes)
    axes.set_title(describe_sizes(prior), loc="left", fontsize=10)
    return png_bytes(figure)


def draw_sizes(axes: Axes, prior: ClusterMap) -> None:
    """Draw a stem for each size that occurs: a bar, one code wide, is too thin for large sizes."""
    sizes, counts = np.unique(prior.sizes, return_counts=True)
    axes.set(xscale="log", xlim=(0.8, 1.3 * sizes[-1]), yscale="log", ylim=(0.7, 2 * counts.max()))
    axes.vlines(sizes, 0.7, counts, color=COLOUR, linewidth=1.5)
    axes.plot(sizes, counts, "o", color=COLOUR, markersize=5)


def _name_axes(axes: Axes) -> None:
    plain = FuncFormatter(lambda value, _: f"{value:,g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(plain)
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
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
