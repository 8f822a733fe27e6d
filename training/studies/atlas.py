"""The codebook atlas: every cluster with what its codes look like, as images and as web pages.

Clusters of several codes come first, then single codes, both in the order of the tree's leaves, so
that neighbours look alike; so do the codes of a cluster. Every code stands on exactly one sheet.

A sheet is an image. Its page is one file that needs no script and, beside the sheet's image,
nothing from anywhere: an ``<img>`` of each code is a window on the sheet. Codes and clusters have
anchors, ``#code-17`` and ``#cluster-5``. ``masc serve`` shows the same of a published model.

Legend: V codes, K clusters, S pixels a side of a patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from jinja2 import Template
from PIL import Image, ImageDraw, ImageFont

from masc_core.arrays import IntArray
from masc_core.images import Pixels, encode_image
from masc_core.prior import ClusterMap
from masc_core.semantic_tree import LeafOrder

PAGE = Path(__file__).with_name("atlas.html")
LARGEST = 12  # clusters that the first page points to

COLUMNS = 40  # patches per row of a sheet
MARGIN, GAP, SPACE = 16, 1, 10  # pixels around the sheet, between patches, between clusters
LABEL_HEIGHT, HEADING_HEIGHT = 13, 34
BACKGROUND, FRAME, TEXT = "#f6f5f2", "#868e94", "#1d2327"


@dataclass(frozen=True, slots=True, eq=False)
class AtlasCluster:
    """A cluster as it is shown.

    Attributes
    ----------
    number : of the cluster, in 0..K-1
    codes : int64 (n,), its codes in the order of the leaves
    height : of the branch of the tree that holds just these codes; 0 for a single code, None where
        there is no such branch
    """

    number: int
    codes: IntArray
    height: float | None

    @property
    def is_single(self) -> bool:
        """Whether it holds one code only."""
        return len(self.codes) == 1


def atlas_clusters(prior: ClusterMap, order: LeafOrder) -> list[AtlasCluster]:
    """All clusters, those of several codes first, each part by the place of their middle code."""
    codes = [order.sort(part) for part in np.split(prior.members, prior.offsets[1:-1])]
    middles = [order.starts[part[len(part) // 2]] for part in codes]
    branches = order.branches(prior).tolist()
    heights = [None if node < 0 else float(order.heights[node]) for node in branches]
    return [
        AtlasCluster(number, codes[number], heights[number])
        for number in np.lexsort([middles, prior.sizes == 1]).tolist()
    ]


def split_clusters(
    clusters: Sequence[AtlasCluster], codes_per_sheet: int
) -> Iterator[list[AtlasCluster]]:
    """Consecutive clusters of at most so many codes; a larger cluster gets a part of its own."""
    part: list[AtlasCluster] = []
    num_codes = 0
    for cluster in clusters:
        if part and num_codes + len(cluster.codes) > codes_per_sheet:
            yield part
            part, num_codes = [], 0
        part.append(cluster)
        num_codes += len(cluster.codes)
    yield part


@dataclass(frozen=True, slots=True)
class Sheet:
    """An image of the atlas.

    Attributes
    ----------
    png : the image, as a file
    clusters : what it shows, in order
    corners : left and top pixel of the patch of each of its codes
    side : S
    """

    png: bytes
    clusters: Sequence[AtlasCluster]
    corners: dict[int, tuple[int, int]]
    side: int


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Codes of one cluster beside each other; the label is empty where a row goes on."""

    label: str
    codes: IntArray
    left: int
    top: int


def draw_sheet(clusters: Sequence[AtlasCluster], patches: Pixels) -> Sheet:
    """Draw clusters in their order: framed patches (V, S, S, 3) under the cluster's number."""
    side = patches.shape[1]
    headings, runs, size = _lay_out(clusters, side)
    image = Image.new("RGB", size, BACKGROUND)
    canvas = ImageDraw.Draw(image)
    for text, top in headings:
        canvas.text((MARGIN, top), text, TEXT, ImageFont.load_default(20))
    label_font, corners = ImageFont.load_default(11), {}
    for run in runs:
        canvas.text((run.left, run.top - LABEL_HEIGHT - 2), run.label, TEXT, label_font)
        right = run.left + len(run.codes) * (side + GAP) - GAP
        frame = (run.left - 2, run.top - 2, right + 1, run.top + side + 1)
        canvas.rectangle(frame, BACKGROUND, FRAME)
        for i, code in enumerate(run.codes.tolist()):
            corners[code] = run.left + i * (side + GAP), run.top
            image.paste(Image.fromarray(patches[code]), corners[code])
    return Sheet(encode_image(np.asarray(image), "png"), clusters, corners, side)


def _lay_out(
    clusters: Sequence[AtlasCluster], side: int
) -> tuple[list[tuple[str, int]], list[_Run], tuple[int, int]]:
    """Headings with their tops, runs, and width and height of the sheet.

    Clusters follow one another like words: one that does not fit begins a new row, and one that is
    longer than a row goes on in the next.
    """
    headings: list[tuple[str, int]] = []
    runs: list[_Run] = []
    step, row_height = side + GAP, side + SPACE + LABEL_HEIGHT
    limit = MARGIN + COLUMNS * step
    top, right = MARGIN, 0
    for single, group in groupby(clusters, key=lambda cluster: cluster.is_single):
        part = list(group)
        text = f"{len(part):,} clusters of {'one code' if single else 'several codes'}"
        top += row_height if runs else 0
        headings.append((text, top))
        left, top = MARGIN, top + HEADING_HEIGHT + LABEL_HEIGHT
        right = max(right, MARGIN + 12 * len(text))
        for cluster in part:
            codes, label = cluster.codes, str(cluster.number)
            if left > MARGIN and left + len(codes) * step > limit:
                left, top = MARGIN, top + row_height
            while len(codes):
                if left + step > limit:
                    left, top = MARGIN, top + row_height
                fitting = codes[: (limit - left) // step]
                runs.append(_Run(label, fitting, left, top))
                left += len(fitting) * step
                right = max(right, left)
                codes, label = codes[len(fitting) :], ""
            left += SPACE
    return headings, runs, (right + MARGIN, top + side + MARGIN)


@dataclass(frozen=True, slots=True)
class Overview:
    """What the first page says before the clusters.

    Attributes
    ----------
    title : of all pages
    facts : label and value
    pictures : file name, and what the picture shows
    """

    title: str
    facts: Mapping[str, str]
    pictures: Mapping[str, str]


def page_stem(index: int) -> str:
    """Name of a page and of its image, without the suffix: ``atlas``, ``atlas-2``, ..."""
    return f"atlas-{index + 1}" if index else "atlas"


def atlas_pages(sheets: Sequence[Sheet], overview: Overview) -> Iterator[str]:
    """HTML of the page of each sheet; the sheet's image is ``page_stem(i) + ".png"``."""
    template = Template(
        PAGE.read_text("utf-8"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    stems = [page_stem(index) for index in range(len(sheets))]
    several = [
        (stem, cluster)
        for stem, sheet in zip(stems, sheets, strict=True)
        for cluster in sheet.clusters
        if not cluster.is_single
    ]
    largest = sorted(several, key=lambda pair: -len(pair[1].codes))[:LARGEST]
    for index, sheet in enumerate(sheets):
        yield template.render(
            title=overview.title + (f", page {index + 1}" if index else ""),
            overview=None if index else overview,
            largest=largest,
            stems=stems,
            stem=stems[index],
            sheet=sheet,
            several=[cluster for cluster in sheet.clusters if not cluster.is_single],
            singles=[cluster for cluster in sheet.clusters if cluster.is_single],
        )
