"""What a search for near clusters answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from masc_core.tree.upgma.clusters import Clusters
from masc_core.tree.upgma.heap import Nearest
from masc_core.tree.upgma.types import FloatArray, IdArray, IntArray

CHUNK_BYTES = 16 << 20  # of what a search holds at a time


@dataclass(frozen=True, slots=True)
class Found:
    """Part of an answer.

    Attributes
    ----------
    rows : int64 (R,), the slots that asked
    ids : int32 (R, m), slots that may be near, in no order; the first ``counts`` of each row
    counts : int64 (R,)
    outside : float64 (R,), no other cluster is nearer in average distance
    """

    rows: IntArray
    ids: IdArray
    counts: IntArray
    outside: FloatArray


class Search(Protocol):
    """Clusters of one moment, ready to be asked."""

    def nearest(self, rows: IntArray, num_wanted: int) -> Iterator[Found]:
        """The ``num_wanted`` alive slots that may be nearest to each row (R,), in parts."""
        ...


def found(clusters: Clusters, rows: IntArray, nearest: Nearest, outside: FloatArray) -> Found:
    """The answer for ``rows``, with what rounding may have added taken off ``outside``."""
    with np.errstate(invalid="ignore"):  # of infinity, where everything was found
        least = outside - clusters.rounding(rows, outside)
    return Found(rows, nearest.ids, nearest.counts, np.where(np.isinf(outside), np.inf, least))


def parts(rows: IntArray, row_bytes: int) -> Iterator[IntArray]:
    """Consecutive parts of ``rows`` that take `CHUNK_BYTES` each, or one row."""
    step = max(1, CHUNK_BYTES // row_bytes)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
