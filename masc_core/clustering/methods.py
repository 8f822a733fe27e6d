"""Every way to make a prior of a codebook, by its name.

``average`` is MASC's own; the others are what it is compared with. The rows are clustered as given,
except that IAR's ``balanced-kmeans`` normalises them by definition.

Legend: V codes, E code dimensions, K clusters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy.typing as npt

from masc_core.clustering.random_partition import random_partition
from masc_core.codebook import check_num_clusters, checked_rows
from masc_core.prior import ClusterMap
from masc_core.tree import build_tree

if TYPE_CHECKING:  # NumPy rows need no torch
    from torch import Tensor

METHODS = (
    "average",
    "single",
    "complete",
    "centroid",
    "kmeans",
    "kmeans++",
    "balanced-kmeans",
    "random",
    "identity",
)


def cluster_codes(
    codebook: npt.ArrayLike | Tensor,
    num_clusters: int,
    method: str = "average",
    *,
    seed: int = 0,
    device: str = "cpu",
) -> ClusterMap:
    """Partition of the codes into exactly ``num_clusters`` clusters.

    Parameters
    ----------
    codebook : float (V, E), array or tensor, V >= 2
    num_clusters : K
    method : one of `METHODS`
    seed : of ``kmeans``, ``kmeans++``, ``balanced-kmeans`` and ``random``; the others draw nothing
    device : where ``average``, ``single`` and ``complete`` build their tree; the others use the CPU

    Raises
    ------
    ValueError : a codebook that is not 2-D, has fewer than two rows or a row with a NaN or an
        infinity; a K that is not in 1..V, or that the method does not allow (``identity``: V,
        ``balanced-kmeans``: a divisor of V); a method or a device that is not offered
    """
    rows = checked_rows(codebook)
    check_num_clusters(num_clusters, len(rows))
    match method:  # Numba and scikit-learn take a second to import: only where they are needed
        case "average" | "single" | "complete":
            prior = build_tree(rows, method, device=device).cut(num_clusters)
        case "centroid":
            from masc_core.clustering.centroid_linkage import (  # noqa: PLC0415
                centroid_linkage,
                cut_in_merge_order,
            )

            prior = cut_in_merge_order(centroid_linkage(rows), num_clusters)
        case "kmeans" | "kmeans++":
            from masc_core.clustering.kmeans import kmeans  # noqa: PLC0415

            init: Literal["random", "k-means++"] = "random" if method == "kmeans" else "k-means++"
            prior = kmeans(rows, num_clusters, init, seed=seed)
        case "balanced-kmeans":
            from masc_core.clustering.balanced_kmeans import balanced_kmeans  # noqa: PLC0415

            prior = balanced_kmeans(rows, num_clusters, seed)
        case "random":
            prior = random_partition(len(rows), num_clusters, seed)
        case "identity":
            prior = _identity(len(rows), num_clusters)
        case _:
            raise ValueError(f"method {method!r} is not offered, only {', '.join(METHODS)} are")
    return prior


def _identity(num_codes: int, num_clusters: int) -> ClusterMap:
    if num_clusters != num_codes:
        raise ValueError(
            f"identity makes {num_codes} clusters of {num_codes} codes, not {num_clusters}"
        )
    return ClusterMap.identity(num_codes)
