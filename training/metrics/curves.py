"""Entropy by position, as a picture.

Legend: L positions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.plot_png import png_bytes


def draw_curves(title: str, curves: Mapping[str, NDArray[np.float64]]) -> bytes:
    """PNG of curves float64 (L,), bits, by name."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        axes.plot(np.arange(1, len(curve) + 1), curve, label=name, linewidth=1.2)
    axes.set(title=title, xlabel="position", ylabel="bits", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return png_bytes(figure)
