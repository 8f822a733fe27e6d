"""The priors of a comparison: every method at every K, over one codebook.

A tree is built once and cut at every K. What a method cannot make (equal sizes where K does not
divide V) is a reason, not an error. Everything runs on the CPU, so that a machine with a GPU finds
the same clusters.

Legend: V codes, K clusters, E code dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from masc_core.clustering.centroid_linkage import centroid_linkage
from masc_core.clustering.methods import METHODS, cluster_codes, random_partition
from masc_core.prior import ClusterMap
from masc_core.semantic_tree import cut_merges
from masc_core.tree import Linkage, SemanticTree, build_tree

# Tells geometry from skew: clusters of the sizes of the average-linkage cut, codes at random.
CANDIDATES = (*METHODS, "average-shuffled")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prior, or why there is none.

    Attributes
    ----------
    method : one of `CANDIDATES`, or the name of a prior that was made elsewhere
    num_clusters : the K asked for
    file : where the prior lies, or is to lie within a folder
    prior : None where the method cannot make it
    reason : why not
    """

    method: str
    num_clusters: int
    file: str
    prior: ClusterMap | None
    reason: str = ""


class CandidateBuilder:
    """Builds priors over one codebook.

    Parameters
    ----------
    rows : float64 (V, E)
    seed : of what is random in a method
    """

    def __init__(self, rows: NDArray[np.float64], seed: int) -> None:
        self._rows, self._seed = rows, seed
        self._trees: dict[Linkage, SemanticTree] = {}

    def build(self, methods: Sequence[str], num_clusters: Sequence[int]) -> Iterator[Candidate]:
        """Every method at every K, the methods of one K together."""
        for count in num_clusters:
            for method in methods:
                yield self._candidate(method, count)

    def _candidate(self, method: str, num_clusters: int) -> Candidate:
        file = f"{method}-{num_clusters}.npz"
        try:
            return Candidate(method, num_clusters, file, self._prior(method, num_clusters))
        except ValueError as error:
            return Candidate(method, num_clusters, file, None, str(error))

    def _prior(self, method: str, num_clusters: int) -> ClusterMap:
        match method:
            case "average" | "single" | "complete":
                return self._tree(method).cut(num_clusters)
            case "centroid":
                return cut_merges(self._centroid_merges, num_clusters)
            case "average-shuffled":
                sizes = self._tree("average").cut(num_clusters).sizes
                return random_partition(len(self._rows), num_clusters, self._seed, sizes)
        return cluster_codes(self._rows, num_clusters, method, seed=self._seed)

    def _tree(self, linkage: Linkage) -> SemanticTree:
        if linkage not in self._trees:
            self._trees[linkage] = build_tree(self._rows, linkage)
        return self._trees[linkage]

    @cached_property
    def _centroid_merges(self) -> NDArray[np.float64]:
        return centroid_linkage(self._rows)
