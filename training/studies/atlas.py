"""The order of the codebook atlas: which clusters are shown, in which order, on which sheet.

Clusters of several codes come first, then single codes, both in the order of the tree's leaves, so
that neighbours look alike; so do the codes of a cluster. Every code stands on exactly one sheet.

Legend: V codes, K clusters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from masc_core.prior import ClusterMap, IntArray
from masc_core.semantic_tree import LeafOrder


@dataclass(frozen=True, slots=True, eq=False)
class AtlasCluster:
    """A cluster as it is shown.

    Attributes
    ----------
    number : of the cluster, in 0..K-1
    codes : int64 (n,), its codes in the order of the leaves
    height : of the branch of the tree that holds just these codes; 0 for a single code, None where
        there is no such branch
    """

    number: int
    codes: IntArray
    height: float | None

    @property
    def is_single(self) -> bool:
        """Whether it holds one code only."""
        return len(self.codes) == 1


def atlas_clusters(prior: ClusterMap, order: LeafOrder) -> list[AtlasCluster]:
    """All clusters, those of several codes first, each part by the place of their middle code."""
    codes = [order.sort(part) for part in np.split(prior.members, prior.offsets[1:-1])]
    middles = [order.starts[part[len(part) // 2]] for part in codes]
    branches = order.branches(prior).tolist()
    heights = [None if node < 0 else float(order.heights[node]) for node in branches]
    return [
        AtlasCluster(number, codes[number], heights[number])
        for number in np.lexsort([middles, prior.sizes == 1]).tolist()
    ]


def split_clusters(
    clusters: Sequence[AtlasCluster], codes_per_sheet: int
) -> Iterator[list[AtlasCluster]]:
    """Consecutive clusters of at most so many codes; a larger cluster gets a part of its own."""
    part: list[AtlasCluster] = []
    num_codes = 0
    for cluster in clusters:
        if part and num_codes + len(cluster.codes) > codes_per_sheet:
            yield part
            part, num_codes = [], 0
        part.append(cluster)
        num_codes += len(cluster.codes)
    yield part
