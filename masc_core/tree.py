"""The semantic tree: average linkage (UPGMA) over the rows of a codebook.

``D(A, B)`` is the mean Euclidean distance over all pairs of a row in A and a row in B; the two
clusters with the smallest D merge, V-1 times. Cutting the tree at K undoes the last K-1 merges.
This module does not know what the rows mean, and does not normalise them; how the merges are found
is the business of `masc_core.linkage`.

Legend: V codes, E code dimensions, K clusters. Nodes are numbered as in SciPy: 0..V-1 are the
codes, V+i is the cluster that merge i makes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from masc_core.codebook import checked_rows
from masc_core.errors import ArtifactError, ConfigError
from masc_core.npz import Array, load_npz, save_npz
from masc_core.prior import ClusterMap

if TYPE_CHECKING:  # a tree is read without torch
    from torch import Tensor

FloatArray = npt.NDArray[np.float64]
Linkage = Literal["average", "single", "complete"]
Report = Callable[[int, int, str], None]


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


def build_tree(
    codebook: npt.ArrayLike | Tensor,
    linkage: Linkage = "average",
    device: str = "cpu",
    report: Report | None = None,
) -> SemanticTree:
    """Exact tree of a codebook; distances are Euclidean, in float64.

    Average linkage takes memory in proportion to V, 2 to 6 KB a code beyond the rows; single
    linkage less; complete linkage is SciPy's and takes 8 bytes for every pair of codes. The result
    is the same for any number of threads.

    Parameters
    ----------
    codebook : float (V, E), array or tensor, V >= 2
    linkage : ``"average"``, ``"single"`` or ``"complete"``
    device : ``"cpu"``; for average linkage also ``"cuda"``, ``"cuda:1"``, ...
    report : called now and then with the work done, the work in all, and what is being done

    Raises
    ------
    ValueError : a codebook that is not 2-D, has fewer than two rows or a row with a NaN or an
        infinity; a linkage or a device that is not offered
    ConfigError : the extra ``training`` is not installed, or this machine has no such device
    """
    if linkage not in get_args(Linkage):
        raise ValueError(f"linkage {linkage!r} is not offered, only {', '.join(get_args(Linkage))}")
    if device != "cpu" and (linkage != "average" or not device.startswith("cuda")):
        raise ValueError(f"{linkage} linkage is not built on the device {device!r}")
    rows = checked_rows(codebook)
    scale = _power_of_two(rows)
    rows /= scale  # changes no digit, and squares cannot overflow
    try:
        merges = _merges(rows, linkage, device, report or _silent)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing:
            raise
        raise ConfigError(f"a tree needs {missing}: pip install 'masc[training]'") from error
    merges[:, 2] *= scale
    return SemanticTree(merges)


def _merges(rows: FloatArray, linkage: Linkage, device: str, report: Report) -> FloatArray:
    # Only the extra `training` brings what building needs, and reading a tree needs none of it.
    if linkage == "complete":
        from scipy.cluster import hierarchy  # noqa: PLC0415
        from scipy.spatial import distance  # noqa: PLC0415

        # Distances rather than rows: SciPy warns of square codebooks that look like distances.
        return hierarchy.linkage(distance.pdist(rows), method="complete")
    if linkage == "single":
        from masc_core.linkage.single import single_linkage  # noqa: PLC0415

        return single_linkage(rows, report)
    if device != "cpu":
        from masc_core.linkage.average_torch import average_linkage_torch  # noqa: PLC0415

        return average_linkage_torch(rows, device, report)
    from masc_core.linkage.average import average_linkage  # noqa: PLC0415

    return average_linkage(rows, report)


def _power_of_two(rows: FloatArray) -> float:
    """The power of two below the largest entry."""
    largest = float(np.abs(rows).max())
    return float(np.ldexp(1.0, int(np.frexp(largest)[1]) - 1)) if largest else 1.0


def _silent(_done: int, _total: int, _what: str) -> None:
    pass


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
