"""A partition that knows nothing of the codebook: what a prior is worth beyond its sizes.

A uniform random permutation of the codes is dealt out to clusters whose sizes are fixed beforehand.
By default these are as equal as possible: no other K sizes give a lower ``sum sizes^2 / V``, the
mean number of codes in a code's cluster. With the sizes of another prior, only the choice of
members differs from it. Drawing a cluster for each code by itself would leave clusters empty
instead, one in seven for K = V / 2.

Legend: V codes, K clusters.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from masc_core.codebook import check_num_clusters
from masc_core.prior import ClusterMap, IntArray


def random_partition(
    num_codes: int, num_clusters: int, seed: int = 0, sizes: npt.ArrayLike | None = None
) -> ClusterMap:
    """Exactly K clusters with members drawn at random.

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
