"""k-means and k-means++ by scikit-learn, in the paper's settings: 10 runs of 300 iterations.

Of the runs, the one with the lowest inertia counts, ``sum_v ||x_v - mean of its cluster||^2``.
scikit-learn can return fewer than K clusters where rows coincide. Each empty one then gets the row
that is farthest from its centre, the step that scikit-learn takes itself between iterations: it
never raises the inertia, and where only equal rows are left to part it parts them, as a tree does.

Lloyd, IEEE Transactions on Information Theory 28, 1982; Arthur, Vassilvitskii, SODA 2007.
Legend: V codes, E code dimensions, K clusters.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from masc_core.arrays import FloatArray, IntArray
from masc_core.prior import ClusterMap

NUM_RUNS = 10
MAX_ITERATIONS = 300
TOLERANCE = 1e-4  # of the centres' movement, in variances of the rows


def kmeans(
    rows: FloatArray,
    num_clusters: int,
    init: Literal["random", "k-means++"] = "k-means++",
    *,
    seed: int = 0,
    num_runs: int = NUM_RUNS,
) -> ClusterMap:
    """Exactly K clusters; the same ones for the same rows and seed.

    One thread: with several, scikit-learn adds the centres up in the order in which they finish.

    Parameters
    ----------
    rows : float64 (V, E), see `checked_rows`
    num_clusters : K, in 1..V
    init : how the first centres are drawn, ``"random"`` rows or ``"k-means++"``
    seed : of the first centres of all runs, 0..2^32-1
    num_runs : runs of which the best counts

    Raises
    ------
    ValueError : another init, no run, a seed out of range
    """
    model = KMeans(
        num_clusters,
        init=init,
        n_init=num_runs,
        max_iter=MAX_ITERATIONS,
        tol=TOLERANCE,
        random_state=seed,
    )
    with threadpool_limits(limits=1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer clusters: they are filled below
        model.fit(rows)
    distances = np.square(rows - model.cluster_centers_[model.labels_]).sum(axis=1)
    return ClusterMap.from_labels(_without_empty(model.labels_, distances, num_clusters))


def _without_empty(labels: IntArray, distances: FloatArray, num_clusters: int) -> IntArray:
    """Move the rows farthest from their centres, unless they are alone, into the empty clusters."""
    labels = labels.copy()
    sizes = np.bincount(labels, minlength=num_clusters)
    empty = iter(np.flatnonzero(sizes == 0).tolist())
    cluster = next(empty, None)
    for row in np.argsort(-distances, kind="stable"):
        if cluster is None:
            break
        if sizes[labels[row]] > 1:
            sizes[labels[row]] -= 1
            labels[row] = cluster
            cluster = next(empty, None)
    return labels
