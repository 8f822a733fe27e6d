"""Candidates for clusters that know none: whom to ask, and whom next if that tells too little.

Centroids are asked first. In many dimensions their distances tell little about clusters, so
products of the members are asked next. What is left are wide clusters, and ties: more neighbours at
about one distance than were wanted. These look at every other cluster.
"""

from __future__ import annotations

import numpy as np

from masc_core.linkage.box_search import BoxSearch
from masc_core.linkage.candidates import Candidates
from masc_core.linkage.clusters import Clusters
from masc_core.linkage.found import Search
from masc_core.linkage.member_search import MemberSearch
from masc_core.linkage.product_search import ProductSearch
from masc_core.linkage.types import IntArray

WANTED = 32  # clusters that are looked at first
MANY_DIMENSIONS = 48  # from here on matrix products win (benchmarks/tree.py)


def fill_empty(clusters: Clusters, candidates: Candidates) -> None:
    """Fill every empty list of an alive slot."""
    empty = candidates.empty(np.flatnonzero(clusters.alive))
    if not len(empty):
        return
    if clusters.points.shape[1] < MANY_DIMENSIONS:
        empty = _ask(BoxSearch(clusters), empty, clusters, candidates)
    else:
        empty = _ask(ProductSearch(clusters), empty, clusters, candidates)
        if len(empty):
            empty = _ask(MemberSearch(clusters), empty, clusters, candidates)
    if len(empty):
        candidates.fill_exhaustively(clusters, empty)


def _ask(search: Search, rows: IntArray, clusters: Clusters, candidates: Candidates) -> IntArray:
    """Fill the lists of ``rows``; those that are still empty."""
    for found in search.nearest(rows, min(WANTED, len(clusters.alive))):
        candidates.fill(clusters, found)
    return candidates.empty(rows)
