"""What a partition looks like before any image is decoded: sizes, and distances inside clusters.

Legend: V codes, K clusters, E code dimensions, C(z) the cluster of code z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from masc_core.arrays import FloatArray, IntArray
from masc_core.prior import ClusterMap

# Rows of a distance matrix held at once: 128 MB for a cluster of 16,384 codes.
ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class ClusterSizes:
    """How the codes share out over the clusters.

    Attributes
    ----------
    largest : codes in the largest cluster
    mean : V / K
    effective_clusters : ``2^H`` of the shares ``|C| / V``; K where all clusters are of one size
    singleton_clusters : share of the clusters that hold one code
    singleton_codes : share of the codes that are alone
    singleton_usage : share of the counted codes that are alone
    largest_usage : share of the counted codes that lie in the largest cluster
    histogram : (size, number of clusters of that size), ascending
    """

    largest: int
    mean: float
    effective_clusters: float
    singleton_clusters: float
    singleton_codes: float
    singleton_usage: float
    largest_usage: float
    histogram: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ClusterDistances:
    """Euclidean distances between rows of the codebook, in its unit.

    Attributes
    ----------
    pairs : mean over all pairs of different codes of one cluster, 0 where there is no such pair
    uniform : mean distance of a counted code z to a member of C(z) drawn uniformly, itself included
    frequency : the same with the member drawn by frequency
    """

    pairs: float
    uniform: float
    frequency: float


def cluster_sizes(prior: ClusterMap, usage: IntArray) -> ClusterSizes:
    """Statistics of the sizes; ``usage`` int64 (V,) counts the codes of real images."""
    sizes, codes = prior.sizes, prior.num_codes
    shares = sizes / codes
    used = np.bincount(prior.labels, weights=usage) / usage.sum()  # (K,)
    values, numbers = np.unique(sizes, return_counts=True)
    single = sizes == 1
    return ClusterSizes(
        largest=int(sizes.max()),
        mean=codes / prior.num_clusters,
        effective_clusters=float(2 ** -(shares * np.log2(shares)).sum()),
        singleton_clusters=float(single.mean()),
        singleton_codes=float(single.sum() / codes),
        singleton_usage=float(used[single].sum()),
        largest_usage=float(used[sizes.argmax()]),
        histogram=tuple(zip(values.tolist(), numbers.tolist(), strict=True)),
    )


def cluster_distances(
    rows: FloatArray, prior: ClusterMap, usage: IntArray, counts: IntArray
) -> ClusterDistances:
    """Distances inside clusters.

    Parameters
    ----------
    rows : float64 (V, E), the codebook
    prior : over the V codes
    usage, counts : int64 (V,), of the codes to be replaced, and what frequency decoding draws by
    """
    probabilities = np.stack(
        [np.ones(len(rows)), 1 / prior.sizes[prior.labels], code_probabilities(prior, counts)],
        axis=1,
    )
    sums, uniform, frequency = _distances_to_cluster(rows, prior, probabilities).T
    ordered_pairs = (prior.sizes * (prior.sizes - 1)).sum()
    return ClusterDistances(
        pairs=float(sums.sum() / max(ordered_pairs, 1)),
        uniform=float(usage @ uniform / usage.sum()),
        frequency=float(usage @ frequency / usage.sum()),
    )


def code_probabilities(prior: ClusterMap, counts: IntArray) -> FloatArray:
    """Probability of each code when its cluster is decoded by frequency, float64 (V,).

    ``counts[z] / sum of the counts in C(z)``, and ``1 / |C(z)|`` where that sum is 0.
    """
    totals = np.bincount(prior.labels, weights=counts)[prior.labels]
    return np.where(totals > 0, counts / np.maximum(totals, 1), 1 / prior.sizes[prior.labels])


def _distances_to_cluster(rows: FloatArray, prior: ClusterMap, weights: FloatArray) -> FloatArray:
    """``sum of w[m] |rows[z] - rows[m]| over m in C(z)``, (V, M), for weights (V, M)."""
    sums = np.zeros_like(weights)
    for cluster in np.flatnonzero(prior.sizes > 1):
        members = prior.members[prior.offsets[cluster] : prior.offsets[cluster + 1]]
        for start in range(0, len(members), ROWS_AT_ONCE):
            part = members[start : start + ROWS_AT_ONCE]
            sums[part] = cdist(rows[part], rows[members]) @ weights[members]
    return sums
