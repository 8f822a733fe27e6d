"""A Matplotlib figure as the bytes of a PNG; equal figures give equal bytes.

Figures are made without pyplot, which keeps every figure alive and looks for a display.
"""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DOTS_PER_INCH = 120


def png_bytes(figure: Figure) -> bytes:
    """Draw the figure; the file says neither when nor by what it was made."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return buffer.getvalue()
