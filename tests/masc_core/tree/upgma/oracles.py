"""Codebooks that strain a builder of trees, and what a tree has to be."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st
from scipy.cluster import hierarchy
from scipy.spatial import distance

from masc_core.tree import Linkage, SemanticTree

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
    oracle = hierarchy.linkage(distance.pdist(rows), "average")
    np.testing.assert_allclose(linkage[:, 2], oracle[:, 2], rtol=1e-6, atol=1e-12)
    gaps = np.diff(oracle[:, 2], prepend=-np.inf, append=np.inf)
    decided = gaps > 1e-9 * oracle[-1, 2]
    if decided.all():
        assert np.array_equal(linkage[:, [0, 1, 3]], oracle[:, [0, 1, 3]])
        return
    ours, theirs = SemanticTree(linkage), SemanticTree(oracle)
    for num_clusters in len(rows) - np.flatnonzero(decided)[:-1]:
        assert np.array_equal(ours.cut(num_clusters).labels, theirs.cut(num_clusters).labels)


def assert_greedy(rows: Rows, linkage: Rows, method: Linkage = "average") -> None:
    """Every merge is a true minimum at its moment."""
    join = {"average": np.add, "single": np.minimum, "complete": np.maximum}[method]
    between = distance.squareform(distance.pdist(rows))  # of average linkage, the sums
    np.fill_diagonal(between, np.inf)
    sizes = np.ones(len(rows))
    slots = list(range(len(rows)))  # of every node
    for first, second, height, size in linkage.tolist():
        distances = between / np.outer(sizes, sizes) if method == "average" else between
        a, b = slots[int(first)], slots[int(second)]
        assert distances[a, b] == pytest.approx(height, rel=1e-9, abs=1e-12)
        assert height == pytest.approx(distances.min(), rel=1e-9, abs=1e-12)
        between[a] = between[:, a] = join(between[a], between[b])
        between[a, a] = between[b] = between[:, b] = np.inf
        sizes[a] += sizes[b]
        assert size == sizes[a]
        slots.append(a)
