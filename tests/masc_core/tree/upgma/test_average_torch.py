from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masc_core.tree.upgma import average_torch, torch_candidates, torch_clusters
from masc_core.tree.upgma.average import average_linkage
from masc_core.tree.upgma.average_torch import average_linkage_torch
from tests.masc_core.tree.upgma.oracles import (
    HURTFUL,
    Rows,
    assert_greedy,
    assert_scipys,
    distinct_distances,
    silent,
    ties,
)


@pytest.fixture(autouse=True)
def narrow_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few candidates and small chunks, so that small codebooks go through everything."""
    monkeypatch.setattr(average_torch, "WIDTH", 3)
    monkeypatch.setattr(torch_candidates, "WANTED", 4)
    for module in (average_torch, torch_candidates, torch_clusters):
        monkeypatch.setattr(module, "CHUNK_PAIRS", 1000)


@settings(max_examples=100, deadline=None)
@given(distinct_distances(), st.sampled_from([1, 5, 2048]))
def test_heights_and_partitions_are_scipys(rows: Rows, num_dense: int) -> None:
    assert_scipys(rows, average_linkage_torch(rows, "cpu", silent, num_dense))


@settings(max_examples=100, deadline=None)
@given(ties(), st.sampled_from([1, 5, 2048]))
def test_every_merge_is_a_true_minimum_where_distances_are_equal(
    rows: Rows, num_dense: int
) -> None:
    assert_greedy(rows, average_linkage_torch(rows, "cpu", silent, num_dense))


@pytest.mark.parametrize("rows", HURTFUL.values(), ids=HURTFUL)
@pytest.mark.parametrize("num_dense", [1, 2048])
@pytest.mark.parametrize("whole", [True, False])
def test_shapes_that_hurt(
    rows: Rows, num_dense: int, monkeypatch: pytest.MonkeyPatch, *, whole: bool
) -> None:
    if whole:  # everything in one chunk
        monkeypatch.undo()
    assert_greedy(rows, average_linkage_torch(rows, "cpu", silent, num_dense))


def test_a_small_clump_far_away_keeps_its_digits() -> None:
    rows = 1e-6 * np.random.default_rng(0).normal(size=(400, 2))
    rows[:200] += 1e3
    linkage = average_linkage_torch(rows, "cpu", silent)
    np.testing.assert_allclose(linkage[:, 2], average_linkage(rows, silent)[:, 2], rtol=1e-9)


@pytest.mark.parametrize("dimensions", [8, 64])
def test_the_same_tree_as_the_processors(dimensions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rows = np.random.default_rng(1).normal(size=(1500, dimensions))
    linkage = average_linkage_torch(rows, "cpu", silent, num_dense=60)
    expected = average_linkage(rows, silent, num_dense=60)
    np.testing.assert_allclose(linkage, expected, rtol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("dimensions", [8, 64])
def test_the_same_tree_on_a_gpu_every_time(
    dimensions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    rows = np.random.default_rng(1).normal(size=(5000, dimensions))
    linkage = average_linkage_torch(rows, "cuda", silent)
    np.testing.assert_allclose(linkage, average_linkage(rows, silent), rtol=1e-9)
    assert np.array_equal(linkage, average_linkage_torch(rows, "cuda", silent))
