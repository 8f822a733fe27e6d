"""Squared distances by matrix products, and how far they may be off.

``|a - b|^2 = |a|^2 + |b|^2 - 2 a b``, with vectors that are centred, or centred anew around the
rows that ask where these lie close together: an error is relative to the distance from the centre,
so near vectors are told apart even where all of them are far from the others.

Legend: n vectors, E dimensions, R rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from masc_core.linkage.types import FloatArray, IntArray, ProductArray

FAR_OFF = 16.0  # times their own spread: rows so far from the centre get one of their own


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
        self._vectors = vectors - vectors.mean(axis=0)
        self.scale = float(np.abs(self._vectors).max()) or 1.0
        self._vectors /= self.scale  # float32 cannot square all that float64 can hold
        self._rounded = self._vectors.astype(dtype, copy=False)
        self._norms = _norms(self._rounded)
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

    def _around(self, rows: IntArray) -> tuple[ProductArray, ProductArray]:
        """Vectors and squared norms, seen from ``rows`` if these are together and far off."""
        centre = self._vectors[rows].mean(axis=0)
        spread = self._vectors[rows] - centre
        if np.vdot(spread, spread) * FAR_OFF**2 >= len(rows) * np.vdot(centre, centre):
            return self._rounded, self._norms
        vectors = (self._vectors - centre).astype(self._rounded.dtype, copy=False)
        return vectors, _norms(vectors)


def _norms(vectors: ProductArray) -> ProductArray:
    norms: ProductArray = np.einsum("ij,ij->i", vectors, vectors)
    return norms
