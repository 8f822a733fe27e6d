"""The full history of merges of a codebook's codes, and its cuts.

Cutting the tree at K undoes the last K-1 merges.

Legend: V codes, K clusters. Nodes are numbered as in SciPy: 0..V-1 are the codes, V+i is the
cluster that merge i makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike

import numpy as np
import numpy.typing as npt

from masc_core.codebook import FloatArray
from masc_core.errors import ArtifactError
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
        """Partition into exactly ``num_clusters`` clusters: the first V-K merges, ties or not.

        Raises
        ------
        ValueError : K outside 1..V
        """
        if not 1 <= num_clusters <= self.num_codes:
            raise ValueError(f"K must be in 1..{self.num_codes}, got {num_clusters}")
        num_merges = self.num_codes - num_clusters
        parent = np.arange(self.num_codes + num_merges)
        merged = self.linkage[:num_merges, :2].astype(np.int64)
        parent[merged] = np.arange(self.num_codes, len(parent))[:, None]
        while True:  # the distance to the root halves in every round, so log2(V) rounds do
            above = parent[parent]
            if np.array_equal(above, parent):
                return ClusterMap.from_labels(parent[: self.num_codes])
            parent = above

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
        linkage = load_npz(path, ["linkage"])["linkage"]
        try:
            return cls(linkage)
        except ValueError as error:
            raise ArtifactError(path, f"is not a usable tree: {error}") from error


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
