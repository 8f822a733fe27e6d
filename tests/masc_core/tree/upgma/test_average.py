from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy
from scipy.spatial import distance

from masc_core.tree.upgma import average, candidates
from masc_core.tree.upgma.average import average_linkage
from masc_core.tree.upgma.hubs import Hubs
from tests.masc_core.tree.upgma.oracles import (
    HURTFUL,
    Rows,
    assert_greedy,
    assert_scipys,
    distinct_distances,
    silent,
    ties,
)

ROOT = Path(__file__).parents[4]


@pytest.fixture(autouse=True)
def narrow_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few candidates, so that small codebooks go through every stage of a search."""
    monkeypatch.setattr(average, "WIDTH", 3)
    monkeypatch.setattr(candidates, "WANTED", 4)
    monkeypatch.setattr(candidates, "MEMBERS_WANTED", 4)
    monkeypatch.setattr(candidates, "ALONE", 0)


@settings(max_examples=200, deadline=None)
@given(distinct_distances(), st.sampled_from([1, 5, 2048]))
def test_heights_and_partitions_are_scipys(rows: Rows, num_dense: int) -> None:
    assert_scipys(rows, average_linkage(rows, silent, num_dense))


@settings(max_examples=200, deadline=None)
@given(ties(), st.sampled_from([1, 5, 2048]))
def test_every_merge_is_a_true_minimum_where_distances_are_equal(
    rows: Rows, num_dense: int
) -> None:
    assert_greedy(rows, average_linkage(rows, silent, num_dense))


@pytest.mark.parametrize("rows", HURTFUL.values(), ids=HURTFUL)
def test_shapes_that_hurt(rows: Rows) -> None:
    assert_greedy(rows, average_linkage(rows, silent, num_dense=1))


@settings(max_examples=150, deadline=None)
@given(distinct_distances(), st.sampled_from([1, 5]), st.sampled_from([1.0, 2.0, 9.0]))
def test_hubs_give_the_same_tree(rows: Rows, num_dense: int, wide: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "WIDE", wide)
        assert_scipys(rows, average_linkage(rows, silent, num_dense))


@settings(max_examples=150, deadline=None)
@given(ties(), st.sampled_from([1, 5]), st.sampled_from([1.0, 2.0, 9.0]))
def test_hubs_merge_true_minima_where_distances_are_equal(
    rows: Rows, num_dense: int, wide: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "WIDE", wide)
        assert_greedy(rows, average_linkage(rows, silent, num_dense))


@pytest.mark.parametrize("dimensions", [8, 64])
def test_a_clump_that_takes_in_a_cloud_becomes_a_hub(
    dimensions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    made: list[int] = []
    add = Hubs.add

    def counting(hubs: Hubs, slots: npt.NDArray[np.int64]) -> None:
        made.extend(slots.tolist())
        add(hubs, slots)

    monkeypatch.setattr(Hubs, "add", counting)
    rng = np.random.default_rng(6)
    cloud = rng.normal(size=(1000, dimensions))
    rows = np.concatenate([1e-3 * rng.normal(size=(700, dimensions)), cloud])
    assert_scipys(rows, average_linkage(rows, silent, num_dense=40))
    assert made


@pytest.mark.parametrize("num_codes", [3000, 400])
@pytest.mark.parametrize("dimensions", [8, 64])
def test_full_width_against_scipy(
    num_codes: int, dimensions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(num_codes // 20, dimensions))
    rows = centres[rng.integers(0, len(centres), num_codes)]
    rows = rows + 0.3 * rng.normal(size=rows.shape) * rng.gamma(1.0, size=(num_codes, 1))
    linkage = average_linkage(rows, silent, num_dense=60)
    oracle = hierarchy.linkage(distance.pdist(rows), "average")
    np.testing.assert_allclose(linkage[:, 2], oracle[:, 2], rtol=1e-9)
    assert np.array_equal(linkage[:, :2], oracle[:, :2])


def test_two_clumps_far_apart_keep_their_digits() -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(300, 64)) + 1e6 * (np.arange(300) % 2)[:, None]
    linkage = average_linkage(rows, silent, num_dense=40)
    oracle = hierarchy.linkage(distance.pdist(rows), "average")
    np.testing.assert_allclose(linkage[:, 2], oracle[:, 2], rtol=1e-8)


def test_progress_counts_up_and_names_what_is_done() -> None:
    seen: list[tuple[int, int, str]] = []
    rows = np.random.default_rng(3).normal(size=(400, 2))
    average_linkage(rows, lambda *progress: seen.append(progress), num_dense=50)
    assert {what for _, _, what in seen} == {"neighbours", "distances"}
    for what in ("neighbours", "distances"):
        done = [d for d, _, w in seen if w == what]
        assert done == sorted(done)
    assert all(0 < done <= total for done, total, _ in seen)


def test_an_interrupt_gets_through() -> None:
    def interrupt(_done: int, _total: int, _what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        average_linkage(np.random.default_rng(3).normal(size=(400, 2)), interrupt, num_dense=50)


PROGRAM = """
import hashlib
import numpy as np
from masc_core.tree import build_tree
rows = np.random.default_rng(5).normal(size=(3000, {dimensions}))
print(hashlib.sha256(build_tree(rows).linkage.tobytes()).hexdigest())
"""


@pytest.mark.parametrize("dimensions", [8, 64])
def test_any_number_of_threads_gives_the_same_bits(dimensions: int) -> None:
    program = PROGRAM.format(dimensions=dimensions)
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=os.environ | {"NUMBA_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in ("1", "2", "3")
    }
    assert len(digests) == 1
