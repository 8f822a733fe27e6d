"""The full history of merges of a codebook's codes, its cuts, and the order of its leaves.

Legend: V codes, K clusters. Nodes are numbered as in SciPy: 0..V-1 are the codes, V+i is the
cluster that merge i makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

import numpy as np
import numpy.typing as npt

from masc_core.arrays import FloatArray, IntArray
from masc_core.codebook import check_num_clusters
from masc_core.errors import ArtifactError
from masc_core.io.bounded import MAX_CODES
from masc_core.io.npz import Array, load_npz, save_npz
from masc_core.prior import ClusterMap


@dataclass(frozen=True, slots=True, eq=False)
class SemanticTree:
    """The full history of merges of V codes.

    Parameters
    ----------
    linkage : float64 (V-1, 4), one row a merge in ascending order of height: the two nodes merged,
        the height (their distance, in the codebook's unit), the number of codes in the result.
        Kept as a read-only copy.

    Raises
    ------
    ValueError : not such a matrix; names the merge at fault
    """

    linkage: FloatArray

    def __post_init__(self) -> None:
        linkage = np.array(_checked_linkage(np.asarray(self.linkage)), dtype=np.float64)
        linkage.setflags(write=False)
        object.__setattr__(self, "linkage", linkage)

    @property
    def num_codes(self) -> int:
        """V."""
        return len(self.linkage) + 1

    @property
    def heights(self) -> FloatArray:
        """Height of each merge, float64 (V-1,), ascending."""
        return self.linkage[:, 2]

    def cut(self, num_clusters: int) -> ClusterMap:
        """Partition by `cut_merges`, which undoes the last K-1 merges, ties or not."""
        return cut_merges(self.linkage, num_clusters)

    def save(self, path: str | PathLike[str]) -> None:
        """Write an ``.npz`` file with the array ``linkage``, replacing ``path`` in one step."""
        save_npz(path, linkage=self.linkage)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> SemanticTree:
        """Read what `save` wrote.

        Raises
        ------
        ArtifactError : the file is missing, damaged, or does not describe a tree
        """
        linkage = load_npz(path, ["linkage"], max_bytes=32 * MAX_CODES)["linkage"]
        try:
            return cls(linkage)
        except ValueError as error:
            raise ArtifactError(path, f"is not a usable tree: {error}") from error


def cut_merges(merges: FloatArray, num_clusters: int) -> ClusterMap:
    """Partition into exactly ``num_clusters`` clusters by the first V-K merges.

    Parameters
    ----------
    merges : float64 (V-1, 4), SciPy's convention, in the order in which they are made
    num_clusters : K

    Raises
    ------
    ValueError : K outside 1..V
    """
    num_codes = len(merges) + 1
    check_num_clusters(num_clusters, num_codes)
    kept = merges[: num_codes - num_clusters, :2].astype(np.int64)
    parent = np.arange(num_codes + len(kept))
    parent[kept] = np.arange(num_codes, len(parent))[:, None]
    while True:  # the distance to the root halves in every round, so log2(V) rounds do
        above = parent[parent]
        if np.array_equal(above, parent):
            return ClusterMap.from_labels(parent[:num_codes])
        parent = above


@dataclass(frozen=True, slots=True, eq=False)
class LeafOrder:
    """The order of a tree's leaves, in which codes that look alike stand side by side.

    Under a merge stand the leaves of its first child, then those of its second, as in SciPy's
    ``leaves_list``; so the leaves under a node are neighbours, and a node is known by where they
    begin and how many they are.

    Attributes
    ----------
    tree : of V codes
    codes : int64 (V,), from the first position to the last
    starts : int64 (2V-1,), position of the first leaf under each node; of a code, its own
    sizes : int64 (2V-1,), leaves under each node
    heights : float64 (2V-1,), of each node; 0 of a code
    depths : int64 (2V-1,), nodes above each
    """

    tree: SemanticTree
    codes: IntArray
    starts: IntArray
    sizes: IntArray
    heights: FloatArray
    depths: IntArray

    @classmethod
    def of(cls, tree: SemanticTree) -> LeafOrder:
        """Go down the tree, the root first."""
        num_codes, linkage = tree.num_codes, tree.linkage
        sizes = np.concatenate([np.ones(num_codes), linkage[:, 3]]).astype(np.int64)
        starts, depths = np.zeros_like(sizes), np.zeros_like(sizes)
        # Through views, whose numbers are read and written ten times as fast one by one.
        children = np.ascontiguousarray(linkage[:, :2].T.astype(np.int64))
        first_of, second_of = children[0].data, children[1].data
        size_of, start_of, depth_of = sizes.data, starts.data, depths.data
        for merge in range(num_codes - 2, -1, -1):
            node, first, second = num_codes + merge, first_of[merge], second_of[merge]
            start_of[first] = start_of[node]
            start_of[second] = start_of[node] + size_of[first]
            depth_of[first] = depth_of[second] = depth_of[node] + 1
        heights = np.concatenate([np.zeros(num_codes), linkage[:, 2]])
        return cls(tree, np.argsort(starts[:num_codes]), starts, sizes, heights, depths)

    def sort(self, codes: npt.ArrayLike) -> IntArray:
        """Codes, int64 (n,), in the order of the leaves."""
        array = np.asarray(codes, dtype=np.int64)
        return array[np.argsort(self.starts[array])]

    def chunks(self, num_clusters: int) -> ClusterMap:
        """Partition into K runs of V / K neighbours; a ValueError where K is no divisor of V."""
        check_num_clusters(num_clusters, len(self.codes))
        size, rest = divmod(len(self.codes), num_clusters)
        if rest:
            raise ValueError(
                f"clusters of equal size need a K that divides the {len(self.codes)} codes, "
                f"got {num_clusters}"
            )
        return ClusterMap.from_labels(self.starts[: len(self.codes)] // size)

    def cluster_starts(self, prior: ClusterMap) -> IntArray:
        """Position of the first code of each cluster, int64 (K,)."""
        return np.minimum.reduceat(self.starts[prior.members], prior.offsets[:-1])

    def branches(self, prior: ClusterMap) -> IntArray:
        """Node under which exactly the codes of each cluster stand, int64 (K,); -1 without one.

        Where the prior is a cut of this tree, every cluster has one.
        """
        firsts = self.cluster_starts(prior)
        lasts = np.maximum.reduceat(self.starts[prior.members], prior.offsets[:-1])
        base = len(self.codes) + 1
        keys, wanted = self.starts * base + self.sizes, firsts * base + prior.sizes
        by_key = np.argsort(keys)
        nodes = by_key[np.searchsorted(keys, wanted, sorter=by_key)]  # the last leaf's is no less
        is_one = (keys[nodes] == wanted) & (lasts - firsts + 1 == prior.sizes)
        return np.where(is_one, nodes, -1)


def _checked_linkage(linkage: Array) -> Array:
    if linkage.ndim != 2 or linkage.shape[1] != 4 or not len(linkage):
        raise ValueError(f"a linkage has the shape (V-1, 4), got {linkage.shape}")
    if linkage.dtype != np.float64:
        raise ValueError(f"a linkage is float64, got {linkage.dtype}")
    _refuse(~np.isfinite(linkage), "has a NaN or an infinity")
    ids, heights = linkage[:, :2], linkage[:, 2]
    num_codes = len(linkage) + 1
    made = np.arange(num_codes, 2 * num_codes - 1)[:, None]  # the node that each merge makes
    _refuse((ids != np.floor(ids)) | (ids < 0) | (ids >= made), "joins a node that does not exist")
    nodes = ids.astype(np.int64)
    first_use = np.zeros(nodes.size, dtype=bool)
    first_use[np.unique(nodes, return_index=True)[1]] = True
    _refuse(~first_use.reshape(nodes.shape), "joins a node that has been joined before")
    _refuse(np.diff(heights, prepend=0.0) < 0, "is lower than the one before it, or negative")
    sizes = np.concatenate([np.ones(num_codes), linkage[:, 3]])
    _refuse(sizes[nodes].sum(axis=1) != linkage[:, 3], "has the wrong size")
    return linkage


def _refuse(wrong: npt.NDArray[np.bool_], reason: str) -> None:
    """Raise for the first merge of which anything is wrong; ``wrong`` is (V-1,) or (V-1, n)."""
    if wrong.any():
        merge = int(np.argwhere(wrong)[0, 0])
        raise ValueError(f"merge {merge} {reason}")
