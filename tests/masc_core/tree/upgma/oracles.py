"""Codebooks that strain a builder of trees, and what a tree has to be."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st
from scipy.cluster import hierarchy
from scipy.spatial import distance

from masc_core.tree import SemanticTree

Rows = npt.NDArray[np.float64]

HURTFUL = {
    "simplex": np.eye(70),  # every distance is the same
    "duplicates": np.repeat(np.random.default_rng(0).normal(size=(9, 3)), 8, axis=0),
    "chain": np.outer(1.5 ** np.arange(120), np.ones(2)),  # over twenty decades
    "even spacing": np.outer(np.arange(90.0), np.ones(3)),
}


def silent(_done: int, _total: int, _what: str) -> None:
    """Report nothing."""


@st.composite
def distinct_distances(draw: st.DrawFn) -> Rows:
    """Codebooks in which no two distances are equal, of shapes that strain a search."""
    count = draw(st.integers(2, 150))
    dimensions = draw(st.sampled_from([1, 2, 3, 8, 11, 60]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = rng.normal(size=(count, dimensions))
    shape = draw(st.sampled_from(["gaussian", "sphere", "heavy", "clumps", "line", "offset"]))
    if shape == "sphere":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True) if dimensions > 1 else 1.0
    elif shape == "heavy":
        rows *= rng.pareto(1.0, size=(count, 1))
    elif shape == "clumps":
        rows += 1e4 * rng.integers(0, 3, size=(count, 1))
    elif shape == "line":
        rows = np.outer(rng.normal(size=count), np.ones(dimensions))
    elif shape == "offset":
        rows += 1e5
    return rows


@st.composite
def ties(draw: st.DrawFn) -> Rows:
    """Codebooks on a coarse grid: many equal distances, and equal rows."""
    shape = (draw(st.integers(2, 40)), draw(st.sampled_from([1, 2, 3, 50])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(0, draw(st.integers(1, 4)), size=shape).astype(float)


def assert_scipys(rows: Rows, linkage: Rows) -> None:
    """SciPy's heights, and its partition at every K where no tie decides."""
    tree = SemanticTree(linkage)
    oracle = hierarchy.linkage(distance.pdist(rows), "average")
    np.testing.assert_allclose(tree.heights, oracle[:, 2], rtol=1e-6, atol=1e-12)
    reference = SemanticTree(oracle)
    gaps = np.diff(oracle[:, 2], prepend=-np.inf, append=np.inf)
    for num_clusters in range(1, len(rows) + 1):
        if gaps[len(rows) - num_clusters] > 1e-9 * oracle[-1, 2]:
            ours, theirs = tree.cut(num_clusters), reference.cut(num_clusters)
            assert np.array_equal(ours.labels, theirs.labels)


def assert_greedy(rows: Rows, linkage: Rows) -> None:
    """Every merge is a true minimum at its moment."""
    pairwise = distance.squareform(distance.pdist(rows))
    clusters = {i: [i] for i in range(len(rows))}

    def mean(a: int, b: int) -> float:
        return float(pairwise[np.ix_(clusters[a], clusters[b])].mean())

    for i, (a, b, height, size) in enumerate(linkage.tolist()):
        closest = min(mean(x, y) for x, y in combinations(clusters, 2))
        assert mean(int(a), int(b)) == pytest.approx(height, rel=1e-9, abs=1e-12)
        assert height == pytest.approx(closest, rel=1e-9, abs=1e-12)
        clusters[len(rows) + i] = clusters.pop(int(a)) + clusters.pop(int(b))
        assert size == len(clusters[len(rows) + i])
