"""A comparison of priors as JSON, which has everything, and as Markdown tables, for reading.

Neither holds the time or the machine, so equal results give equal bytes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, TypeVar

from masc_core.sampling.in_cluster import MODES
from training.metrics.cluster_bits import ClusterBits
from training.metrics.image_quality import EXACT_PSNR
from training.metrics.prior_measurement import Comparison, PriorResult, Quality
from training.metrics.semantic_replacement import Estimate

FORMAT = 1
ABSENT = "-"

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
    for decoding in MODES:
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
