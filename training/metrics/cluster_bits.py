"""Bits per position: what naming the cluster costs, and what naming the code within it costs.

Every number is a held-out cross-entropy: a model is fitted to one stream of codes and codes another
one. It is an upper bound of the entropy that does not shrink when contexts are many and samples
few, as the entropy of observed frequencies does. With counts n of the fitted stream:

* unigram (Krichevsky, Trofimov 1981): ``p(c) = (n_c + 1/2) / (n + K/2)``
* conditional on the cluster b before it (MacKay, Peto: A Hierarchical Dirichlet Language Model,
  1995): ``p(c | b) = (n_bc + a p(c)) / (n_b + a)``, with the a under which the fitted stream is
  most likely when every position is predicted from all the others. Where few samples meet many
  contexts a grows, and the model falls back to p(c). The first position has its own context.
* code in its cluster C, uniform decoding: ``log2 |C|``
* code in its cluster, frequency decoding: ``p(z | C) = (n_z + 1/2) / (n_C + |C|/2)``

By the chain rule cluster bits plus in-cluster bits name the code: sums of different priors, and the
flat vocabulary's cluster bits, compare.

All that the models need are pairs: ``pairs[b, c]`` counts how often c comes right after b in raster
order; row V counts what stands first in an image, so every position is in one pair and the columns
sum to the codes' own counts. Pairs of clusters are sums of pairs of codes: the stream is read once,
whatever the number of priors.

Legend: N images, L positions, V codes, K clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.sparse import coo_array, csr_array

from masc_core.arrays import FloatArray, IntArray
from masc_core.prior import ClusterMap
from training.data.code_cache import CodeCache

PSEUDO_COUNT = 0.5
# Beyond these a, the model is that of the observed frequencies, or the unigram.
LOG_CONCENTRATIONS = (math.log(1e-3), math.log(1e7))
LOG_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class ClusterBits:
    """Bits per position under one prior.

    Attributes
    ----------
    unigram, conditional : of the cluster, without and with the cluster before it
    conditional_ratio : ``conditional`` over log2 K, 0 for a single cluster
    uniform, frequency : of the code in its cluster; ``uniform`` is E[log2 |C|]
    """

    unigram: float
    conditional: float
    conditional_ratio: float
    uniform: float
    frequency: float


def cluster_bits(prior: ClusterMap, fitted: csr_array, held_out: csr_array) -> ClusterBits:
    """Fit the models to one stream and measure them on another.

    Parameters
    ----------
    prior : over the V codes
    fitted, held_out : int64 (V+1, V), pairs as `count_pairs` counts them
    """
    fitted_clusters, clusters = cluster_pairs(fitted, prior), cluster_pairs(held_out, prior)
    conditional = conditional_bits(fitted_clusters, clusters)
    max_bits = np.log2(prior.num_clusters)
    usage = code_counts(held_out)
    return ClusterBits(
        unigram=unigram_bits(code_counts(fitted_clusters), code_counts(clusters)),
        conditional=conditional,
        conditional_ratio=float(conditional / max_bits) if max_bits else 0.0,
        uniform=uniform_bits(prior, usage),
        frequency=frequency_bits(prior, code_counts(fitted), usage),
    )


def count_pairs(codes: NDArray[np.integer], num_codes: int) -> csr_array:
    """Pairs int64 (V+1, V), without stored zeros, of codes (N, L) in [0, V) in raster order."""
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
    coo = pairs.tocoo()
    labels = np.append(prior.labels, prior.num_clusters)  # the start of an image stays itself
    return _sum_pairs(coo.data, labels[coo.row], labels[coo.col], prior.num_clusters)


def code_counts(pairs: csr_array) -> IntArray:
    """How often each code (or cluster) occurs, int64 (V,)."""
    return np.asarray(pairs.sum(axis=0), dtype=np.int64)


def _sum_pairs(counts: IntArray, before: IntArray, after: IntArray, size: int) -> csr_array:
    pairs = coo_array((counts, (before, after)), shape=(size + 1, size))
    return pairs.tocsr()  # adds up equal pairs


def unigram_bits(fitted: IntArray, held_out: IntArray) -> float:
    """Cross-entropy of the unigram model; counts of clusters, int64 (K,) each."""
    return _mean_bits(_unigram(fitted), held_out)


def conditional_bits(fitted: csr_array, held_out: csr_array) -> float:
    """Cross-entropy of the bigram model; pairs of clusters, int64 (K+1, K) each."""
    pairs = held_out.tocoo()
    before, after = pairs.row, pairs.col
    shared = _concentration(fitted) * _unigram(code_counts(fitted))  # a p(c), (K,)
    context_counts = np.asarray(fitted.sum(axis=1))  # n_b, (K+1,)
    joint = np.asarray(fitted[before, after]) + shared[after]
    return _mean_bits(joint / (context_counts[before] + shared.sum()), pairs.data)


def uniform_bits(prior: ClusterMap, held_out: IntArray) -> float:
    """E[log2 |C|] over the codes counted in ``held_out``, int64 (V,)."""
    return _mean_bits(1 / prior.sizes[prior.labels], held_out)


def frequency_bits(prior: ClusterMap, fitted: IntArray, held_out: IntArray) -> float:
    """E[-log2 p(code | cluster)]; counts of codes, int64 (V,) each."""
    totals = np.bincount(prior.labels, weights=fitted) + PSEUDO_COUNT * prior.sizes
    return _mean_bits((fitted + PSEUDO_COUNT) / totals[prior.labels], held_out)


def _concentration(fitted: csr_array) -> float:
    """Concentration a of the conditional model, by its leave-one-out likelihood."""
    pairs = fitted.tocoo()
    others = pairs.data - 1  # n_bc of the other positions
    context_others = np.asarray(fitted.sum(axis=1))[pairs.row] - 1
    backed_off = _unigram(code_counts(fitted))[pairs.col]

    def bits(log_a: float) -> float:
        a = math.exp(log_a)
        return _mean_bits((others + a * backed_off) / (context_others + a), pairs.data)

    best = minimize_scalar(
        bits, bounds=LOG_CONCENTRATIONS, method="bounded", options={"xatol": LOG_TOLERANCE}
    )
    return math.exp(best.x)


def _unigram(counts: IntArray) -> FloatArray:
    smoothed = counts + PSEUDO_COUNT
    return smoothed / smoothed.sum()


def _mean_bits(probabilities: FloatArray, counts: IntArray) -> float:
    """``sum n log2(1 / p) / sum n``."""
    return float((counts * np.log2(1 / probabilities)).sum() / counts.sum())
