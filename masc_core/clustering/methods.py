"""Every way to make a prior of a codebook, by its name.

``average`` is MASC's own, and ``leaf-order`` its tree's leaves in chunks of equal size; the others
are what they are compared with. The rows are clustered as given, except that IAR's
``balanced-kmeans`` normalises them by definition.

Legend: V codes, E code dimensions, K clusters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import numpy.typing as npt

from masc_core.arrays import IntArray
from masc_core.clustering import METHODS
from masc_core.codebook import check_num_clusters, checked_rows
from masc_core.prior import ClusterMap
from masc_core.semantic_tree import LeafOrder, cut_merges
from masc_core.tree import LINKAGES, Linkage, build_tree

if TYPE_CHECKING:  # NumPy rows need no torch
    from torch import Tensor


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
    device : where ``average`` and ``leaf-order`` build their tree; the others use the CPU

    Raises
    ------
    ValueError : a codebook that is not 2-D, has fewer than two rows or a row with a NaN or an
        infinity; a K that is not in 1..V, or that the method does not allow (``identity``: V,
        ``balanced-kmeans`` and ``leaf-order``: a divisor of V); a method or a device that is not
        offered
    """
    rows = checked_rows(codebook)
    check_num_clusters(num_clusters, len(rows))
    if method in LINKAGES:
        return build_tree(rows, cast("Linkage", method), device=device).cut(num_clusters)
    match method:  # Numba and scikit-learn take a second to import: only where they are needed
        case "leaf-order":
            prior = LeafOrder.of(build_tree(rows, device=device)).chunks(num_clusters)
        case "centroid":
            from masc_core.clustering.centroid_linkage import centroid_linkage  # noqa: PLC0415

            prior = cut_merges(centroid_linkage(rows), num_clusters)
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
            if num_clusters != len(rows):
                raise ValueError(
                    f"identity makes {len(rows)} clusters of {len(rows)} codes, not {num_clusters}"
                )
            prior = ClusterMap.identity(len(rows))
        case _:
            raise ValueError(f"method {method!r} is not offered, only {', '.join(METHODS)} are")
    return prior


def random_partition(
    num_codes: int, num_clusters: int, seed: int = 0, sizes: npt.ArrayLike | None = None
) -> ClusterMap:
    """Exactly K clusters with members drawn at random: what a prior is worth beyond its sizes.

    A uniform random permutation of the codes is dealt out to clusters of fixed sizes. By default
    these are as equal as possible: no other K sizes give a lower ``sum sizes^2 / V``, the mean
    number of codes in a code's cluster. Drawing a cluster for each code by itself would leave
    clusters empty, one in seven for K = V / 2.

    Parameters
    ----------
    num_codes : V
    num_clusters : K
    seed : of the permutation
    sizes : int (K,), codes of each cluster, none of them 0, in any order; by default V // K, and
        one more in V % K of them

    Raises
    ------
    ValueError : K outside 1..V; sizes that are not K positive integers with the sum V
    """
    check_num_clusters(num_clusters, num_codes)
    if sizes is None:
        counts = num_codes // num_clusters + (np.arange(num_clusters) < num_codes % num_clusters)
    else:
        counts = _checked_sizes(np.asarray(sizes), num_codes, num_clusters)
    labels = np.empty(num_codes, dtype=np.int64)
    order = np.random.default_rng(seed).permutation(num_codes)
    labels[order] = np.repeat(np.arange(num_clusters), counts)
    return ClusterMap.from_labels(labels)


def _checked_sizes(sizes: IntArray, num_codes: int, num_clusters: int) -> IntArray:
    if sizes.shape != (num_clusters,) or sizes.dtype.kind not in "iu":
        raise ValueError(
            f"sizes must be {num_clusters} integers, got shape {sizes.shape} of {sizes.dtype}"
        )
    empty = np.flatnonzero(sizes < 1)
    if len(empty):
        raise ValueError(f"cluster {empty[0]} has the size {sizes[empty[0]]}")
    if sizes.sum() != num_codes:
        raise ValueError(f"sizes add up to {sizes.sum()}, but there are {num_codes} codes")
    return sizes
