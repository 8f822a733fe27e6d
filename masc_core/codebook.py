"""A codebook: the vectors of a tokenizer's V codes, and the checks before they are clustered.

Every prior starts from the same finite float64 (V, E) array and makes 1..V clusters of it, so all
of them refuse the same input with the same words. Rows are not normalised.

Legend: V codes, E code dimensions, K clusters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from masc_core.arrays import FloatArray

if TYPE_CHECKING:  # priors are built without torch
    from torch import Tensor


def checked_rows(codebook: npt.ArrayLike | Tensor) -> FloatArray:
    """Rows of a codebook, float64 (V, E): a copy in C order.

    Parameters
    ----------
    codebook : real (V, E), array or tensor on any device, V >= 2, E >= 1

    Raises
    ------
    ValueError : a codebook that is not 2-D, does not hold real numbers, has fewer than two rows or
        a row with a NaN or an infinity
    """
    if hasattr(codebook, "detach"):
        tensor = codebook.detach().cpu()  # NumPy has no bfloat16: a tensor widens its rows itself
        codebook = (tensor.double() if tensor.is_floating_point() else tensor).numpy()
    rows = np.asarray(codebook)
    if rows.ndim != 2 or not rows.shape[1]:
        raise ValueError(f"a codebook has the shape (V, E), got {rows.shape}")
    if rows.dtype.kind not in "fiu":
        raise ValueError(f"a codebook holds real numbers, got {rows.dtype}")
    if len(rows) < 2:
        raise ValueError(f"a codebook needs at least two rows, got {len(rows)}")
    rows = rows.astype(np.float64, order="C")
    wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(wrong):
        raise ValueError(f"codebook row {wrong[0]} has a NaN or an infinity ({len(wrong)} such)")
    return rows


def check_num_clusters(num_clusters: int, num_codes: int) -> None:
    """Refuse a number of clusters that V codes cannot fill.

    Raises
    ------
    ValueError : K outside 1..V
    """
    if not 1 <= num_clusters <= num_codes:
        raise ValueError(f"K must be in 1..{num_codes}, got {num_clusters}")
