"""Matplotlib figures, and their bytes as a PNG; equal figures give equal bytes.

Figures are made without pyplot, which keeps every figure alive and looks for a display.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

DOTS_PER_INCH = 120


def new_figure(width: float, height: float) -> Figure:
    """Empty figure of that many inches."""
    return Figure((width, height), layout="constrained")


def png_bytes(figure: Figure) -> bytes:
    """Draw the figure; the file says neither when nor by what it was made."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()


def draw_curves(title: str, curves: Mapping[str, NDArray[np.float64]]) -> bytes:
    """PNG of bits by position: curves float64 (L,) by name."""
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    for name, curve in curves.items():
        axes.plot(np.arange(1, len(curve) + 1), curve, label=name, linewidth=1.2)
    axes.set(title=title, xlabel="position", ylabel="bits", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return png_bytes(figure)
