from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masc_core.arrays import FloatArray, IntArray
from masc_core.clustering import balanced_kmeans as module
from masc_core.clustering.balanced_kmeans import balanced_kmeans
from tests.golden_files import load_golden
from tests.masc_core.clustering.codebooks import clustered_rows, codebooks


def plain_loop(rows: FloatArray, first: IntArray) -> list[int]:
    """Every row against every centre, one after the other."""
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    centres = rows[first]
    for _ in range(100):
        squared = [[float(np.square(row - centre).sum()) for centre in centres] for row in rows]
        labels = [-1] * len(rows)
        for i in sorted(range(len(rows)), key=lambda i: min(squared[i])):
            free = [k for k in range(len(first)) if labels.count(k) < len(rows) // len(first)]
            labels[i] = min(free, key=lambda k: squared[i][k])
        moved = np.stack([rows[np.array(labels) == k].mean(axis=0) for k in range(len(first))])
        if np.allclose(moved, centres):
            break
        centres = moved
    return labels


def test_clusters_are_those_of_iar() -> None:
    golden = {
        name: tensor.numpy()
        for name, tensor in load_golden("iar/balanced_kmeans.safetensors").items()
    }
    rows = golden["vectors"].astype(np.float64)
    labels = module._balanced_labels(rows, golden["init_center_indices"])
    assert np.array_equal(labels, golden["assignments"])


@settings(max_examples=100, deadline=None)
@given(codebooks(max_rows=24), st.data())
def test_clusters_are_those_of_the_plain_loop(rows: FloatArray, data: st.DataObject) -> None:
    divisors = [k for k in range(1, len(rows) + 1) if len(rows) % k == 0]
    first = np.array(data.draw(st.permutations(range(len(rows)))))[
        : data.draw(st.sampled_from(divisors))
    ]
    assert module._balanced_labels(rows, first).tolist() == plain_loop(rows, first)


@pytest.mark.parametrize("num_clusters", [1, 2, 48, 96])
@pytest.mark.parametrize("rows", [clustered_rows(96), np.ones((96, 2)), np.zeros((96, 2))])
def test_all_clusters_have_the_same_size(rows: FloatArray, num_clusters: int) -> None:
    prior = balanced_kmeans(rows, num_clusters)
    assert prior.sizes.tolist() == [96 // num_clusters] * num_clusters


def test_clear_clusters_are_found() -> None:
    rng = np.random.default_rng(0)
    which = np.concatenate([np.arange(4), rng.permutation(np.repeat(np.arange(4), 7))])
    rows = np.eye(4)[which] + 0.01 * rng.normal(size=(32, 4))
    # Greedy as it is, it depends on the first centres, but some seeds lead there.
    assert any(np.array_equal(balanced_kmeans(rows, 4, seed).labels, which) for seed in range(9))


def test_length_of_a_row_does_not_matter() -> None:
    rows = clustered_rows(60)
    lengths = 2.0 ** np.random.default_rng(0).integers(-9, 9, size=(60, 1))
    assert np.array_equal(
        balanced_kmeans(rows, 6).labels, balanced_kmeans(rows * lengths, 6).labels
    )


def test_the_seed_draws_the_first_centres() -> None:
    rows = clustered_rows(64)
    labels = [balanced_kmeans(rows, 16, seed).labels.tolist() for seed in (5, 5, 6)]
    assert labels[0] == labels[1] != labels[2]


@pytest.mark.parametrize("num_clusters", [5, 7, 8])
def test_k_must_divide_the_codes(num_clusters: int) -> None:
    with pytest.raises(ValueError, match=rf"divides the 12 codes, got {num_clusters}"):
        balanced_kmeans(clustered_rows(12), num_clusters)
