"""One image of the codebook atlas: the patches of clusters, framed, under the cluster's number.

Clusters follow one another like words: one that does not fit begins a new row, and one that is
longer than a row goes on in the next. The sheet also says where it drew each code, so that a page
can show parts of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from masc_core.images import Pixels, encode_image
from masc_core.prior import IntArray
from training.studies.atlas import AtlasCluster

COLUMNS = 40  # patches a row
MARGIN, GAP, SPACE = 16, 1, 10  # around the sheet, between patches, between clusters
LABEL_HEIGHT, HEADING_HEIGHT = 13, 34
BACKGROUND, FRAME, TEXT = "#f6f5f2", "#868e94", "#1d2327"


@dataclass(frozen=True, slots=True)
class Sheet:
    """An image of the atlas.

    Attributes
    ----------
    png : the image, as a file
    clusters : what it shows, in order
    corners : left and top pixel of the patch of each of its codes
    side : pixels a side of a patch
    """

    png: bytes
    clusters: Sequence[AtlasCluster]
    corners: dict[int, tuple[int, int]]
    side: int


def draw_sheet(clusters: Sequence[AtlasCluster], patches: Pixels) -> Sheet:
    """Draw clusters in the given order, under a heading where single codes begin.

    Parameters
    ----------
    clusters : at least one
    patches : uint8 (V, S, S, 3), the patch of each code, as large as it is to be drawn
    """
    layout = _Layout(patches.shape[1])
    for single in (False, True):
        part = [cluster for cluster in clusters if cluster.is_single is single]
        if part:
            layout.begin(f"{len(part):,} clusters of {'one code' if single else 'several codes'}")
        for cluster in part:
            layout.place(cluster)
    image = Image.new("RGB", layout.size, BACKGROUND)
    layout.paint(ImageDraw.Draw(image))
    corners = dict(layout.corners())
    for code, corner in corners.items():
        image.paste(Image.fromarray(patches[code]), corner)
    return Sheet(encode_image(np.asarray(image), "png"), clusters, corners, layout.side)


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Codes of one cluster beside each other; the label is empty where a row goes on."""

    label: str
    codes: IntArray
    left: int
    top: int


@dataclass(slots=True)
class _Layout:
    """Where everything goes, row by row; ``left`` and ``top`` are those of the next patch."""

    side: int
    left: int = MARGIN
    top: int = MARGIN
    right: int = 0
    headings: list[tuple[str, int]] = field(default_factory=list)
    runs: list[_Run] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:
        return self.right + MARGIN, self.top + self.side + MARGIN

    @property
    def limit(self) -> int:
        return MARGIN + COLUMNS * (self.side + GAP)

    def begin(self, heading: str) -> None:
        """Start a section."""
        if self.runs:
            self.break_row()
        self.headings.append((heading, self.top))
        self.left, self.top = MARGIN, self.top + HEADING_HEIGHT + LABEL_HEIGHT
        self.right = max(self.right, MARGIN + 12 * len(heading))

    def place(self, cluster: AtlasCluster) -> None:
        """Add a cluster."""
        step = self.side + GAP
        if self.left > MARGIN and self.left + len(cluster.codes) * step > self.limit:
            self.break_row()
        codes, label = cluster.codes, str(cluster.number)
        while len(codes):
            if self.left + step > self.limit:
                self.break_row()
            fitting = codes[: (self.limit - self.left) // step]
            self.runs.append(_Run(label, fitting, self.left, self.top))
            self.left += len(fitting) * step
            self.right = max(self.right, self.left)
            codes, label = codes[len(fitting) :], ""
        self.left += SPACE

    def break_row(self) -> None:
        """Go on in a new row."""
        self.left, self.top = MARGIN, self.top + self.side + SPACE + LABEL_HEIGHT

    def corners(self) -> Iterator[tuple[int, tuple[int, int]]]:
        """Each code with the corner of its patch."""
        for run in self.runs:
            for i, code in enumerate(run.codes.tolist()):
                yield code, (run.left + i * (self.side + GAP), run.top)

    def paint(self, canvas: ImageDraw.ImageDraw) -> None:
        """Draw headings, labels and frames."""
        heading_font, label_font = ImageFont.load_default(20), ImageFont.load_default(11)
        for text, top in self.headings:
            canvas.text((MARGIN, top), text, TEXT, heading_font)
        for run in self.runs:
            canvas.text((run.left, run.top - LABEL_HEIGHT - 2), run.label, TEXT, label_font)
            right = run.left + len(run.codes) * (self.side + GAP) - GAP
            frame = (run.left - 2, run.top - 2, right + 1, run.top + self.side + 1)
            canvas.rectangle(frame, BACKGROUND, FRAME)
