"""How often a code follows another in raster order: all that bigram models of clusters need.

``pairs[b, c]`` counts c right after b; row V counts what stands first in an image, so every
position is in one pair and the columns sum to the codes' own counts. Pairs of clusters are sums of
pairs of codes: the stream is read once, whatever the number of priors.

Legend: N images, A variants, L positions, V codes, K clusters.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from masc_core.prior import ClusterMap
from training.data.code_cache import CodeCache

IntArray = NDArray[np.int64]


def count_pairs(codes: NDArray[np.integer], num_codes: int) -> csr_array:
    """Pairs of a stream.

    Parameters
    ----------
    codes : integers (N, L) in [0, V), each row an image in raster order
    num_codes : V

    Returns
    -------
    int64 (V+1, V), without stored zeros
    """
    start = np.full((len(codes), 1), num_codes, np.int64)
    before = np.concatenate([start, codes[:, :-1]], axis=1, dtype=np.int64)
    return _sum_pairs(
        np.ones(codes.size, np.int64), before.ravel(), codes.ravel().astype(np.int64), num_codes
    )


def count_cached_pairs(cache: CodeCache) -> csr_array:
    """Pairs of all variants of all images of a cache, int64 (V+1, V)."""
    size = cache.index.num_codes
    pairs = csr_array((size + 1, size), dtype=np.int64)
    for shard in cache.codes:
        pairs = pairs + count_pairs(shard.reshape(-1, cache.index.num_positions), size)
    return pairs


def cluster_pairs(pairs: csr_array, prior: ClusterMap) -> csr_array:
    """Pairs of clusters, int64 (K+1, K), of pairs of codes, int64 (V+1, V)."""
    listed = pairs.tocoo()
    labels = np.append(prior.labels, prior.num_clusters)  # the start of an image stays itself
    return _sum_pairs(listed.data, labels[listed.row], labels[listed.col], prior.num_clusters)


def code_counts(pairs: csr_array) -> IntArray:
    """How often each code (or cluster) occurs, int64 (V,)."""
    counts: IntArray = np.asarray(pairs.sum(axis=0), dtype=np.int64)
    return counts


def _sum_pairs(counts: IntArray, before: IntArray, after: IntArray, size: int) -> csr_array:
    listed = coo_array((counts, (before, after)), shape=(size + 1, size))
    return listed.tocsr()  # adds up what stands in one place
