"""A comparison of priors as JSON, which has everything, as Markdown tables, and as two pictures.

None of them holds the time or the machine, so equal results give equal bytes. In the pictures a
method has a colour and a marker of its own, so that it can be told without the colour; sizes differ
in lightness.

Legend: K clusters.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from masc_core.sampling.in_cluster import MODEL_FREE_DECODINGS
from training.metrics.cluster_bits import ClusterBits
from training.metrics.cluster_statistics import ClusterSizes
from training.metrics.image_quality import EXACT_PSNR
from training.metrics.prior_measurement import Comparison, PriorResult, Quality
from training.metrics.semantic_replacement import Estimate
from training.plot_png import new_figure

FORMAT = 1
ABSENT = "-"

WIDTH = 9.0  # inches

# Okabe, Ito: Color Universal Design, 2008; without yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h", "p")

DETAIL = 3.0  # dB

# Largest size of each group of clusters; a last group holds what is larger.
SIZE_GROUPS = (1, 2, 4, 8, 16, 64, 256, 1024)

Part = TypeVar("Part")


def as_json(comparison: Comparison) -> bytes:
    """All numbers, with what they were measured on."""
    content = {
        "format": FORMAT,
        "provenance": dict(comparison.provenance),
        "config": dict(comparison.config),
        "flat": dataclasses.asdict(comparison.flat),
        "priors": [dataclasses.asdict(prior) for prior in comparison.priors],
        "impossible": [dataclasses.asdict(prior) for prior in comparison.impossible],
    }
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def as_markdown(comparison: Comparison) -> bytes:
    """Tables of sizes, bits and replacement, each above its legend."""
    sections = [
        "# Priors",
        _conditions(comparison.provenance),
        "## Clusters",
        _table(comparison, SIZE_COLUMNS, lambda prior: prior),
        SIZE_LEGEND,
        "## Bits a position",
        _table(comparison, BIT_COLUMNS, attrgetter("bits")),
        BIT_LEGEND,
        "## Semantic Replacement Test",
        QUALITY_LEGEND,
    ]
    for decoding in MODEL_FREE_DECODINGS:
        title = f"### {decoding.capitalize()} decoding"
        sections += [title, _table(comparison, QUALITY_COLUMNS, _quality(decoding))]
    if comparison.impossible:
        sections += ["## Not possible", _reasons(comparison)]
    return ("\n\n".join(sections) + "\n").encode()


SIZE_COLUMNS: Mapping[str, Callable[[PriorResult], str]] = {
    "largest": lambda p: f"{p.sizes.largest:,}",
    "positions in it": lambda p: f"{p.sizes.largest_usage:.1%}",
    "single clusters": lambda p: f"{p.sizes.singleton_clusters:.1%}",
    "single codes": lambda p: f"{p.sizes.singleton_codes:.1%}",
    "single positions": lambda p: f"{p.sizes.singleton_usage:.1%}",
    "effective K": lambda p: f"{p.sizes.effective_clusters:,.0f}",
    "pair distance": lambda p: f"{p.distances.pairs:.4f}",
    "moved, uniform": lambda p: f"{p.distances.uniform:.4f}",
    "moved, frequency": lambda p: f"{p.distances.frequency:.4f}",
}
SIZE_LEGEND = (
    "*largest*: codes in the largest cluster; beside it the share of the images' positions that "
    "fall into it. *single*: clusters of one code, as a share of the clusters; the share of the "
    "codes and of the positions in them. *effective K*: two to the entropy of the clusters' shares "
    "of the codebook, K when all are of one size. *pair distance*: mean Euclidean distance of two "
    "codes of one cluster. *moved*: expected distance from a position's code to the one decoding "
    "puts in its place."
)

BIT_COLUMNS: Mapping[str, Callable[[ClusterBits], str]] = {
    "unigram": lambda b: f"{b.unigram:.3f}",
    "conditional": lambda b: f"{b.conditional:.3f}",
    "of log2 K": lambda b: f"{b.conditional_ratio:.1%}",
    "in cluster, uniform": lambda b: f"{b.uniform:.3f}",
    "sum, uniform": lambda b: f"{b.conditional + b.uniform:.3f}",
    "in cluster, frequency": lambda b: f"{b.frequency:.3f}",
    "sum, frequency": lambda b: f"{b.conditional + b.frequency:.3f}",
}
BIT_LEGEND = (
    "Held-out cross-entropies. *unigram*, *conditional*: bits of the cluster, without context and "
    "given the one before it in raster order. *in cluster, uniform*: E[log2 |C|], the bits lost by "
    "uniform decoding. *in cluster, frequency*: bits of the code in its cluster under the training "
    "counts. *sum*: conditional and in-cluster bits, which name the code, as the flat "
    "vocabulary's do."
)

QUALITY_COLUMNS: Mapping[str, Callable[[Quality], str]] = {
    "PSNR, dB": lambda q: _with_error(q.psnr, ".2f"),
    "gain, dB": lambda q: _with_error(q.psnr_gain, "+.2f"),
    "SSIM": lambda q: _with_error(q.ssim, ".3f"),
    "SSIM gain": lambda q: _with_error(q.ssim_gain, "+.3f"),
    "PSNR to reconstruction, dB": lambda q: _psnr(q.psnr_to_reconstruction),
    "kept": lambda q: f"{q.kept.mean:.1%}",
}
QUALITY_LEGEND = (
    "Every code replaced by a draw from its cluster. *PSNR*, *SSIM* (of the luma): against the "
    "originals, mean over images and draws ± the standard error of the draws. *gain*: over the "
    "first method at the same K, on the same images and random numbers, ± the standard error over "
    "images. *PSNR to reconstruction*: against what the tokenizer makes of the original codes. "
    "*kept*: positions whose own code was drawn. *flat*: the tokenizer alone, the ceiling."
)


def _conditions(provenance: Mapping[str, Any]) -> str:
    skipped = len(provenance["skipped"])
    return (
        f"{provenance['num_codes']:,} codes. Measured on {provenance['num_images']:,} images of "
        f"{provenance['num_positions']} positions, {provenance['draws']} draws each; counts and "
        f"models from {provenance['fitted_positions']:,} positions of {provenance['fitted_on']}. "
        f"{skipped or 'No'} unreadable image{'' if skipped == 1 else 's'} skipped. Tokenizer "
        f"`{provenance['tokenizer_sha256'][:12]}`."
    )


def _table(
    comparison: Comparison,
    columns: Mapping[str, Callable[[Part], str]],
    part: Callable[[PriorResult], Part],
) -> str:
    rows = [["prior", "K", *columns], ["---", *["--:"] * (len(columns) + 1)]]
    for result in (comparison.flat, *comparison.rows):
        if isinstance(result, PriorResult):
            cells = [show(part(result)) for show in columns.values()]
        else:
            cells = [ABSENT] * len(columns)
        rows.append([result.method, f"{result.num_clusters:,}", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _quality(decoding: str) -> Callable[[PriorResult], Quality]:
    return lambda prior: prior.quality[decoding]


def _with_error(estimate: Estimate | None, form: str) -> str:
    """``mean ± error``, the error with one digit more."""
    if estimate is None:
        return ABSENT
    digits = int(form[-2]) + 1
    return f"{estimate.mean:{form}} ± {estimate.standard_error:.{digits}f}"


def _psnr(estimate: Estimate) -> str:
    exact = estimate.mean > EXACT_PSNR - 0.01  # a mean of equal numbers is rounded
    return "exact" if exact else f"{estimate.mean:.2f}"


def _reasons(comparison: Comparison) -> str:
    return "\n".join(
        f"* {row.method}, K = {row.num_clusters:,}: {row.reason}" for row in comparison.impossible
    )


def draw_sizes(comparison: Comparison) -> Figure:
    """The share of the codes of each prior that lies in clusters of 1, 2, 3-4, ... codes."""
    panels = _by_clusters(comparison.priors)
    bars = [len(priors) for priors in panels.values()]
    figure = new_figure(WIDTH, 1.4 + 0.25 * sum(bars) + 0.4 * len(bars))
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
    return figure


def draw_rate_distortion(comparison: Comparison) -> Figure:
    """PSNR after replacement over the conditional bits of the cluster, for each decoding.

    Above everything, below the priors alone that come within `DETAIL` of the tokenizer itself.
    """
    figure = new_figure(WIDTH, 8.5)
    axes = figure.subplots(2, len(MODEL_FREE_DECODINGS), sharex="row", sharey="row")
    for everything, detail, decoding in zip(*axes, MODEL_FREE_DECODINGS, strict=True):
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
    return figure


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
    rows = range(len(priors))
    lefts = np.zeros(len(priors))
    for label, share, shade in zip(_group_names(), shares.T, shades, strict=True):
        ax.barh(rows, share, left=lefts, color=shade, edgecolor="white", linewidth=0.4, label=label)
        lefts += share
    for row, prior in zip(rows, priors, strict=True):
        ax.text(101, row, f"{prior.sizes.largest:,}", va="center", fontsize="small")
    ax.set_yticks(rows, [prior.method for prior in priors])
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
