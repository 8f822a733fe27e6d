"""The order of a tree's leaves, in which codes that look alike stand side by side.

Under a merge stand the leaves of its first child, then those of its second, as in SciPy's
``leaves_list``; so the leaves under a node are neighbours, and a node is known by where they begin
and how many they are.

Legend: V codes, K clusters. Nodes are numbered as in SciPy, see `masc_core.semantic_tree`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from masc_core.codebook import FloatArray
from masc_core.prior import ClusterMap, IntArray
from masc_core.semantic_tree import SemanticTree


@dataclass(frozen=True, slots=True, eq=False)
class LeafOrder:
    """Where the codes of a tree stand.

    Attributes
    ----------
    tree : of V codes
    codes : int64 (V,), from the first place to the last
    starts : int64 (2V-1,), place of the first leaf under each node; of a code, its own place
    sizes : int64 (2V-1,), leaves under each node
    heights : float64 (2V-1,), of each node; 0 of a code
    """

    tree: SemanticTree
    codes: IntArray
    starts: IntArray
    sizes: IntArray
    heights: FloatArray

    @classmethod
    def of(cls, tree: SemanticTree) -> LeafOrder:
        """Go down the tree, the root first."""
        num_codes, linkage = tree.num_codes, tree.linkage
        sizes = np.concatenate([np.ones(num_codes), linkage[:, 3]]).astype(np.int64)
        starts = np.zeros(2 * num_codes - 1, dtype=np.int64)
        for merge in range(num_codes - 2, -1, -1):
            first, second = linkage[merge, :2].astype(np.int64)
            starts[first] = starts[num_codes + merge]
            starts[second] = starts[first] + sizes[first]
        heights = np.concatenate([np.zeros(num_codes), linkage[:, 2]])
        return cls(tree, np.argsort(starts[:num_codes]), starts, sizes, heights)

    def sort(self, codes: npt.ArrayLike) -> IntArray:
        """Codes, int64 (n,), in the order of their places."""
        array = np.asarray(codes, dtype=np.int64)
        ordered: IntArray = array[np.argsort(self.starts[array])]
        return ordered

    def firsts(self, prior: ClusterMap) -> IntArray:
        """Place of the first code of each cluster, int64 (K,)."""
        firsts: IntArray = np.minimum.reduceat(self.starts[prior.members], prior.offsets[:-1])
        return firsts

    def branches(self, prior: ClusterMap) -> IntArray:
        """Node under which exactly the codes of each cluster stand, int64 (K,); -1 without one.

        Where the prior is a cut of this tree, every cluster has one.
        """
        firsts = self.firsts(prior)
        lasts = np.maximum.reduceat(self.starts[prior.members], prior.offsets[:-1])
        base = len(self.codes) + 1
        keys, wanted = self.starts * base + self.sizes, firsts * base + prior.sizes
        by_key = np.argsort(keys)
        found = by_key[np.searchsorted(keys, wanted, sorter=by_key).clip(max=len(keys) - 1)]
        is_one = (keys[found] == wanted) & (lasts - firsts + 1 == prior.sizes)
        return np.where(is_one, found, -1)
