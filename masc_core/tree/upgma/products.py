"""Squared distances by matrix products, and how far they may be off.

``|a - b|^2 = |a|^2 + |b|^2 - 2 a b``, with vectors that are centred, or centred anew around the
rows that ask where these lie close together: an error is relative to the distance from the centre,
so near vectors are told apart even where all of them are far from the others.

Legend: n vectors, E dimensions, R rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import numpy as np

from masc_core.tree.upgma.types import FloatArray, IntArray, ProductArray

CANCELLED = 1e-5  # squared distances below this share of the squared norms have lost their digits
FAR_OFF = 16.0  # times their own spread: rows so far from the centre get one of their own
STEP = 4096  # vectors that are rounded at a time
TINY = float(np.finfo(np.float64).tiny)

View = tuple[ProductArray, ProductArray]


class Squares(NamedTuple):
    """Parts of the squared distances of some rows to all vectors, in units of `Products.scale`.

    ``own[r] + norms[j] - 2 products[r, j]`` is off by at most ``margin * (own[r] + norms[j])``.
    """

    products: ProductArray  # (R, n), or the other way round
    own: ProductArray  # (R,)
    norms: ProductArray  # (n,)
    margin: np.floating[Any]


class Products:
    """Vectors (n, E) that are multiplied with parts of themselves.

    Attributes
    ----------
    scale : float, what a distance of 1 in `Squares` stands for
    """

    def __init__(self, vectors: FloatArray, dtype: type[np.float32 | np.float64]) -> None:
        self._vectors = vectors
        self.scale = max(float(np.ptp(vectors)), TINY)  # float32 cannot square all of float64
        self._dtype = dtype
        centred = self._seen_from(vectors.mean(axis=0))
        self._views: tuple[View, ...] = ((centred, _norms(centred)),)
        # Rounding of the entries, of E products and of their sum.
        self._margin = dtype(4 * (vectors.shape[1] + 8) * np.finfo(dtype).eps)

    def of(self, rows: IntArray) -> Squares:
        """Products of the vectors ``rows`` (R,) with all, (R, n)."""
        vectors, norms = self._around(rows)
        return Squares(vectors[rows] @ vectors.T, norms[rows], norms, self._margin)

    def onto(self, rows: IntArray, begin: int) -> Squares:
        """Products of the vectors from ``begin`` on with ``rows`` (R,), (n - begin, R)."""
        vectors, norms = self._around(rows)
        products = vectors[begin:] @ vectors[rows].T
        return Squares(products, norms[rows], norms[begin:], self._margin)

    def _around(self, rows: IntArray) -> View:
        """Vectors as seen from ``rows`` if these are together and far off, and squared norms."""
        for view in self._views:
            centre = view[0][rows].mean(axis=0, dtype=np.float64)
            far_off = np.vdot(centre, centre)
            if view[1][rows].mean(dtype=np.float64) - far_off >= far_off / FAR_OFF**2:
                return view
        vectors = self._seen_from(self._vectors[rows].mean(axis=0))
        # The next rows may well be near these.
        self._views = (self._views[0], (vectors, _norms(vectors)))
        return self._views[1]

    def _seen_from(self, centre: FloatArray) -> ProductArray:
        seen = cast("ProductArray", np.empty(self._vectors.shape, self._dtype))
        for start in range(0, len(seen), STEP):  # in parts: the difference is float64
            part = (self._vectors[start : start + STEP] - centre) / self.scale
            seen[start : start + STEP] = part
        return seen


def _norms(vectors: ProductArray) -> ProductArray:
    norms: ProductArray = np.einsum("ij,ij->i", vectors, vectors)
    return norms
