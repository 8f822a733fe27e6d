from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster import hierarchy
from scipy.spatial import distance

from masc_core.tree.upgma.single import STEP, single_linkage
from tests.masc_core.tree.upgma.oracles import silent


@pytest.mark.parametrize("count", [2, 3, 200, STEP + 2])
@pytest.mark.parametrize("dimensions", [1, 3])
def test_the_tree_is_scipys(count: int, dimensions: int) -> None:
    rows = np.random.default_rng(count).normal(size=(count, dimensions))
    oracle = hierarchy.linkage(distance.pdist(rows), "single")
    np.testing.assert_allclose(single_linkage(rows, silent), oracle, rtol=1e-12)


def test_progress_ends_at_its_total() -> None:
    seen: list[tuple[int, int, str]] = []
    rows = np.random.default_rng(0).normal(size=(STEP + 5, 2))
    single_linkage(rows, lambda *progress: seen.append(progress))
    assert [done for done, _, _ in seen] == [STEP, STEP + 4]
    assert {total for _, total, _ in seen} == {STEP + 4}
