"""Two pictures of a comparison of priors: how codes share out, and what clusters cost and keep.

A method has a colour and a marker of its own, so that it can be told without the colour; sizes
differ in lightness. Equal results give equal bytes.

Legend: K clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from masc_core.sampling.in_cluster import MODES
from training.metrics.cluster_statistics import ClusterSizes
from training.metrics.prior_measurement import Comparison, PriorResult
from training.plot_png import png_bytes

WIDTH = 9.0  # inches

# Okabe, Ito: Color Universal Design, 2008; without yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p")

DETAIL = 3.0  # dB

# Largest size of each group of clusters; a last group holds what is larger.
SIZE_GROUPS = (1, 2, 4, 8, 16, 64, 256, 1024)


def size_plot(comparison: Comparison) -> bytes:
    """PNG: the share of the codes of each prior that lies in clusters of 1, 2, 3-4, ... codes."""
    panels = _by_clusters(comparison.priors)
    bars = [len(priors) for priors in panels.values()]
    figure = Figure((WIDTH, 1.4 + 0.25 * sum(bars) + 0.4 * len(bars)), layout="constrained")
    axes = figure.subplots(len(bars), 1, sharex=True, squeeze=False, height_ratios=bars)[:, 0]
    for ax, (num_clusters, priors) in zip(axes, panels.items(), strict=True):
        _size_bars(ax, priors)
        ax.set_title(f"K = {num_clusters:,}", loc="left", fontsize="medium")
    axes[-1].set_xlabel("share of the codes (%); right: codes in the largest cluster")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=len(labels), title="codes in a cluster",
        columnspacing=1.0, handlelength=1.2,
    )  # fmt: skip
    return png_bytes(figure)


def rate_distortion_plot(comparison: Comparison) -> bytes:
    """PNG: PSNR after replacement over the conditional bits of the cluster, for each decoding.

    Above everything, below the priors alone that come within `DETAIL` of the tokenizer itself.
    """
    figure = Figure((WIDTH, 8.5), layout="constrained")
    axes = figure.subplots(2, len(MODES), sharex="row", sharey="row")
    for everything, detail, decoding in zip(*axes, MODES, strict=True):
        ceiling = comparison.flat.quality[decoding].psnr.mean
        everything.axhline(ceiling, color="0.5", linewidth=0.8, linestyle=":")
        _rates(everything, comparison, decoding, -math.inf)
        everything.plot(
            comparison.flat.bits.conditional, ceiling, "k*", markersize=11, label="flat"
        )
        everything.set_title(f"{decoding} decoding", fontsize="medium")
        _rates(detail, comparison, decoding, ceiling - DETAIL)
        detail.set_title(f"less than {DETAIL:g} dB below flat", fontsize="medium")
        detail.set_xlabel("bits of the cluster given the one before it, per position")
    for ax in axes[:, 0]:
        ax.set_ylabel("PSNR after replacement (dB)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(5, len(labels)),
        title="larger marker: larger K",
    )  # fmt: skip
    return png_bytes(figure)


def _by_clusters(priors: Sequence[PriorResult]) -> dict[int, list[PriorResult]]:
    """The priors of each K, largest K first."""
    counts = sorted({prior.num_clusters for prior in priors}, reverse=True)
    return {k: [prior for prior in priors if prior.num_clusters == k] for k in counts}


def _by_method(priors: Sequence[PriorResult]) -> dict[str, list[PriorResult]]:
    """The priors of each method, smallest K first."""
    ordered = sorted(priors, key=lambda prior: prior.num_clusters)
    methods = dict.fromkeys(prior.method for prior in priors)
    return {m: [prior for prior in ordered if prior.method == m] for m in methods}


def _size_bars(ax: Axes, priors: Sequence[PriorResult]) -> None:
    shares = np.array([_group_shares(prior.sizes) for prior in priors])  # (priors, groups)
    shades = mpl.colormaps["cividis_r"](np.linspace(0, 1, shares.shape[1]))
    places = range(len(priors))
    lefts = np.zeros(len(priors))
    for label, share, shade in zip(_group_names(), shares.T, shades, strict=True):
        ax.barh(
            places, share, left=lefts, color=shade, edgecolor="white", linewidth=0.4, label=label
        )
        lefts += share
    for place, prior in zip(places, priors, strict=True):
        ax.text(101, place, f"{prior.sizes.largest:,}", va="center", fontsize="small")
    ax.set_yticks(places, [prior.method for prior in priors])
    ax.invert_yaxis()
    ax.set_xlim(0, 100)
    ax.spines[["top", "right"]].set_visible(False)


def _group_shares(sizes: ClusterSizes) -> list[float]:
    """Per cent of the codes in each of `SIZE_GROUPS`, and beyond them."""
    size, number = np.array(sizes.histogram).T
    groups = np.searchsorted(SIZE_GROUPS, size)
    codes = np.bincount(groups, weights=size * number, minlength=len(SIZE_GROUPS) + 1)
    return [float(share) for share in 100 * codes / codes.sum()]


def _group_names() -> list[str]:
    firsts = [1, *(last + 1 for last in SIZE_GROUPS[:-1])]
    names = [
        str(last) if first == last else f"{first}\N{EN DASH}{last}"
        for first, last in zip(firsts, SIZE_GROUPS, strict=True)
    ]
    return [*names, f"> {SIZE_GROUPS[-1]}"]


def _rates(ax: Axes, comparison: Comparison, decoding: str, least: float) -> None:
    """Draw each method's line through the priors whose PSNR is above ``least`` dB."""
    ascending = list(reversed(_by_clusters(comparison.priors)))
    areas = dict(zip(ascending, np.linspace(20, 80, len(ascending)), strict=True))
    for i, (method, priors) in enumerate(_by_method(comparison.priors).items()):
        shown = [p for p in priors if p.quality[decoding].psnr.mean > least]
        bits = [prior.bits.conditional for prior in shown]
        qualities = [prior.quality[decoding].psnr.mean for prior in shown]
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        line = "-" if i < len(COLOURS) else "--"
        ax.plot(bits, qualities, color=colour, linestyle=line, linewidth=0.9)
        sizes = [areas[prior.num_clusters] for prior in shown]
        ax.scatter(bits, qualities, s=sizes, color=colour, marker=marker, label=method)
    ax.grid(color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
