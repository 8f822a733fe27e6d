"""The semantic tree: average linkage (UPGMA) over the rows of a codebook.

``D(A, B)`` is the mean Euclidean distance over all pairs of a row in A and a row in B; the two
clusters with the smallest D merge, V-1 times.

Legend: V codes, E code dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from masc_core.arrays import FloatArray
from masc_core.codebook import checked_rows
from masc_core.errors import ConfigError
from masc_core.progress import ProgressCallback, no_progress
from masc_core.semantic_tree import SemanticTree

if TYPE_CHECKING:  # a tree is built of arrays without torch
    from torch import Tensor

Linkage = Literal["average", "single", "complete", "ward"]
LINKAGES: tuple[str, ...] = get_args(Linkage)


def build_tree(
    codebook: npt.ArrayLike | Tensor,
    linkage: Linkage = "average",
    device: str = "cpu",
    report: ProgressCallback = no_progress,
) -> SemanticTree:
    """Exact tree of a codebook; distances are Euclidean, in float64.

    Average linkage takes memory in proportion to V, 2 to 6 KB a code beyond the rows; single and
    Ward's linkage, which are fastcluster's, less; complete linkage is SciPy's and takes 8 bytes for
    every pair of codes. The result is the same for any number of threads.

    Parameters
    ----------
    codebook : float (V, E), array or tensor, V >= 2
    linkage : ``"average"``, ``"single"``, ``"complete"`` or ``"ward"``
    device : ``"cpu"``; for average linkage also ``"cuda"``, ``"cuda:1"``, ...
    report : called now and then with the work done, the work in all, and what is being done

    Raises
    ------
    ValueError : a codebook that is not 2-D, has fewer than two rows or a row with a NaN or an
        infinity; a linkage or a device that is not offered
    ConfigError : the extra ``training`` is not installed, or this machine has no such device
    """
    if linkage not in LINKAGES:
        raise ValueError(f"linkage {linkage!r} is not offered, only {', '.join(LINKAGES)}")
    if device != "cpu" and (linkage != "average" or not device.startswith("cuda")):
        raise ValueError(f"{linkage} linkage is not built on the device {device!r}")
    rows = checked_rows(codebook)
    scale = _power_of_two(rows)
    rows /= scale  # changes no digit, and squares cannot overflow
    try:
        merges = _merges(rows, linkage, device, report)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing:
            raise
        raise ConfigError(f"a tree needs {missing}: pip install 'masc[training]'") from error
    merges[:, 2] *= scale
    return SemanticTree(merges)


def _merges(
    rows: FloatArray, linkage: Linkage, device: str, report: ProgressCallback
) -> FloatArray:
    # Only the extra `training` brings what building needs, and reading a tree needs none of it.
    if linkage == "complete":
        from scipy.cluster import hierarchy  # noqa: PLC0415
        from scipy.spatial import distance  # noqa: PLC0415

        # Distances rather than rows: SciPy warns of square codebooks that look like distances.
        return hierarchy.linkage(distance.pdist(rows), method="complete")
    if linkage in {"single", "ward"}:
        import fastcluster  # noqa: PLC0415

        merges: FloatArray = fastcluster.linkage_vector(rows, linkage)
        report(len(merges), len(merges), "merges")
        return merges
    from masc_core.tree.upgma.average import average_linkage  # noqa: PLC0415

    return average_linkage(rows, report, None if device == "cpu" else device)


def _power_of_two(rows: FloatArray) -> float:
    """The power of two below the largest entry."""
    largest = float(np.abs(rows).max())
    return float(np.ldexp(1.0, int(np.frexp(largest)[1]) - 1)) if largest else 1.0
