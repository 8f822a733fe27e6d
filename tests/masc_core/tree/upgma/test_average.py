from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy
from scipy.spatial import distance

from masc_core.arrays import IntArray
from masc_core.tree.upgma import average, candidates, torch_candidates, torch_clusters
from masc_core.tree.upgma.average import average_linkage
from masc_core.tree.upgma.distance_rows import DistanceRows
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

# The processor with few clusters that are wide, and the GPU's program on the processor.
PROGRAMS = pytest.mark.parametrize(
    ("device", "many_points"), [(None, 512.0), (None, 1.0), (None, 9.0), ("cpu", 512.0)]
)


@pytest.fixture(autouse=True)
def narrow_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few candidates and small chunks, so that small codebooks go through every stage."""
    monkeypatch.setattr(average, "LIST_LENGTH", 3)
    monkeypatch.setattr(candidates, "NUM_CLUSTERS", 4)
    monkeypatch.setattr(candidates, "FEW_ROWS", 0)
    for module in (candidates, torch_candidates):
        monkeypatch.setattr(module, "NUM_CENTROIDS", 4)
    for module in (torch_candidates, torch_clusters):
        monkeypatch.setattr(module, "CHUNK_DISTANCES", 1000)
    monkeypatch.setattr(torch_clusters, "CHUNK_PAIRS", 1000)


@PROGRAMS
@settings(max_examples=100, deadline=None)
@given(rows=distinct_distances(), num_dense=st.sampled_from([1, 5, 2048]))
def test_heights_and_partitions_are_scipys(
    rows: Rows, num_dense: int, device: str | None, many_points: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "MANY_POINTS", many_points)
        assert_scipys(rows, average_linkage(rows, silent, device, num_dense))


@PROGRAMS
@settings(max_examples=100, deadline=None)
@given(rows=ties(), num_dense=st.sampled_from([1, 5, 2048]))
def test_every_merge_is_a_true_minimum_where_distances_are_equal(
    rows: Rows, num_dense: int, device: str | None, many_points: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "MANY_POINTS", many_points)
        assert_greedy(rows, average_linkage(rows, silent, device, num_dense))


@pytest.mark.parametrize("rows", HURTFUL.values(), ids=HURTFUL)
@pytest.mark.parametrize(("device", "num_dense"), [(None, 1), ("cpu", 1), ("cpu", 2048)])
@pytest.mark.parametrize("narrow", [True, False])
def test_shapes_that_hurt(
    rows: Rows,
    device: str | None,
    num_dense: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    narrow: bool,
) -> None:
    if not narrow:  # lists as they are, everything in one chunk
        monkeypatch.undo()
    assert_greedy(rows, average_linkage(rows, silent, device, num_dense))


@pytest.mark.parametrize("dimensions", [8, 64])
def test_a_clump_that_takes_in_a_cloud_gets_a_row_of_distances(
    dimensions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    made: list[int] = []
    add = DistanceRows.add

    def counting(rows: DistanceRows, slots: IntArray) -> IntArray:
        made.extend(added := add(rows, slots))
        return added

    monkeypatch.setattr(DistanceRows, "add", counting)
    rng = np.random.default_rng(6)
    cloud = rng.normal(size=(1000, dimensions))
    rows = np.concatenate([1e-3 * rng.normal(size=(1100, dimensions)), cloud])
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


def test_a_small_clump_far_away_keeps_its_digits() -> None:
    rows = 1e-6 * np.random.default_rng(0).normal(size=(400, 2))
    rows[:200] += 1e3
    heights = average_linkage(rows, silent, "cpu")[:, 2]
    np.testing.assert_allclose(heights, average_linkage(rows, silent)[:, 2], rtol=1e-9)


@pytest.mark.parametrize("dimensions", [8, 64])
def test_a_gpus_program_makes_the_same_tree(
    dimensions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    rows = np.random.default_rng(1).normal(size=(1100, dimensions))
    linkage = average_linkage(rows, silent, "cpu", num_dense=60)
    np.testing.assert_allclose(linkage, average_linkage(rows, silent, num_dense=60), rtol=1e-9)


@pytest.mark.gpu
@pytest.mark.parametrize("dimensions", [8, 64])
def test_the_same_tree_on_a_gpu_every_time(
    dimensions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    rows = np.random.default_rng(1).normal(size=(5000, dimensions))
    linkage = average_linkage(rows, silent, "cuda")
    np.testing.assert_allclose(linkage, average_linkage(rows, silent), rtol=1e-9)
    assert np.array_equal(linkage, average_linkage(rows, silent, "cuda"))


@pytest.mark.parametrize("device", [None, "cpu"])
def test_progress_counts_up_and_names_what_is_done(device: str | None) -> None:
    seen: list[tuple[int, int, str]] = []
    rows = np.random.default_rng(3).normal(size=(400, 2))
    average_linkage(rows, lambda *progress: seen.append(progress), device, num_dense=50)
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
for dimensions in (8, 64):
    rows = np.random.default_rng(5).normal(size=(3000, dimensions))
    print(hashlib.sha256(build_tree(rows).linkage.tobytes()).hexdigest())
"""


def test_any_number_of_threads_gives_the_same_bits() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env=os.environ | {"NUMBA_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for threads in ("1", "3")
    }
    assert len(digests) == 1
