"""Small codebooks for property tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from masc_core.arrays import FloatArray


@st.composite
def codebooks(draw: st.DrawFn, max_rows: int = 12) -> FloatArray:
    """Gaussian rows, or rows on a coarse grid with many ties, duplicates and zeros."""
    shape = (draw(st.integers(2, max_rows)), draw(st.integers(1, 4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.booleans()):
        return rng.normal(size=shape)
    return rng.integers(0, draw(st.integers(0, 3)), size=shape, endpoint=True).astype(float)


def clustered_rows(num_rows: int, seed: int = 0) -> FloatArray:
    """Unit rows of 8 dimensions in clusters of uneven width, about 64 rows each."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, num_rows // 64), 8))
    widths = 0.35 * rng.gamma(1.0, size=(num_rows, 1))
    rows = rng.choice(centres, num_rows) + widths * rng.normal(size=(num_rows, 8))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float64)
