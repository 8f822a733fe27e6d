from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster import hierarchy

from masc_core.clustering import METHODS
from masc_core.clustering.kmeans import kmeans
from masc_core.clustering.methods import cluster_codes, random_partition
from masc_core.prior import ClusterMap
from tests.masc_core.clustering.codebooks import clustered_rows

ROOT = Path(__file__).parents[3]
KMEANS: dict[str, Literal["random", "k-means++"]] = {"kmeans": "random", "kmeans++": "k-means++"}
PARTITIONS = tuple(method for method in METHODS if method != "identity")


def test_the_names_are_known_without_what_clusters() -> None:
    program = (
        "import sys; sys.modules.update(sklearn=None, numba=None, scipy=None, torch=None)\n"
        "from masc_core.clustering.methods import METHODS, cluster_codes\n"
        "print(cluster_codes([[0.0], [1.0]], 2, 'identity').num_clusters, len(METHODS))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout == "2 11\n"


def test_public_names() -> None:
    trees, runs = ("average", "single", "complete", "ward", "centroid"), ("kmeans", "kmeans++")
    equal = ("balanced-kmeans", "leaf-order")
    assert (*trees, *runs, *equal, "random", "identity") == METHODS


@pytest.mark.parametrize("method", PARTITIONS)
def test_exactly_k_clusters(method: str) -> None:
    rows = clustered_rows(30)
    rows[20:] = rows[0]
    for num_clusters in (1, 6, 15, 30):
        assert cluster_codes(rows, num_clusters, method).num_clusters == num_clusters


def test_every_method_finds_other_clusters() -> None:
    rows = clustered_rows(512)
    found = {tuple(cluster_codes(rows, 64, method).labels.tolist()) for method in PARTITIONS}
    assert len(found) == len(PARTITIONS)


@pytest.mark.parametrize("method", ["average", "single", "complete", "ward", "centroid"])
def test_linkages_are_scipys(
    method: Literal["average", "single", "complete", "ward", "centroid"],
) -> None:
    rows = clustered_rows(200)
    merges = hierarchy.linkage(rows, method)
    labels = np.arange(399)
    for i in range(150):  # down to 50 clusters
        labels[np.isin(labels, merges[i, :2])] = 200 + i
    expected = ClusterMap.from_labels(labels[:200]).labels
    assert np.array_equal(cluster_codes(rows, 50, method).labels, expected)


def test_average_is_the_default() -> None:
    rows = clustered_rows(40)
    assert np.array_equal(cluster_codes(rows, 9).labels, cluster_codes(rows, 9, "average").labels)


def test_tensors_are_codebooks() -> None:
    rows = clustered_rows(40)
    prior = cluster_codes(torch.from_numpy(rows).requires_grad_(), 10, "kmeans++")
    assert np.array_equal(prior.labels, cluster_codes(rows, 10, "kmeans++").labels)


@pytest.mark.parametrize("method", PARTITIONS)
def test_the_seed_reaches_what_draws(method: str) -> None:
    rows = clustered_rows(256)
    labels = [cluster_codes(rows, 64, method, seed=seed).labels.tolist() for seed in (1, 1, 2)]
    draws = method in {"kmeans", "kmeans++", "balanced-kmeans", "random"}
    assert labels[0] == labels[1]
    assert (labels[0] != labels[2]) == draws


def test_kmeans_starts_at_random_rows_and_kmeans_plus_plus_does_not() -> None:
    rows = clustered_rows(100)
    for method, init in KMEANS.items():
        expected = kmeans(rows, 20, init, seed=4)
        assert np.array_equal(cluster_codes(rows, 20, method, seed=4).labels, expected.labels)


def test_identity_is_the_flat_vocabulary() -> None:
    assert cluster_codes(np.ones((5, 2)), 5, "identity").labels.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="identity makes 5 clusters of 5 codes, not 4"):
        cluster_codes(np.ones((5, 2)), 4, "identity")


def test_the_device_is_that_of_trees() -> None:
    rows = clustered_rows(8)
    for method in ("average", "single", "complete", "leaf-order"):
        with pytest.raises(ValueError, match="abacus"):
            cluster_codes(rows, 4, method, device="abacus")
    for method in ("centroid", "kmeans", "kmeans++", "balanced-kmeans", "random"):
        cluster_codes(rows, 4, method, device="abacus")


def test_unknown_method_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"'median' is not offered, only average, .* are"):
        cluster_codes(np.eye(3), 2, "median")


@pytest.mark.parametrize("method", METHODS)
def test_bad_input_is_refused_by_every_method(method: str) -> None:
    with pytest.raises(ValueError, match="row 1 has a NaN"):
        cluster_codes(np.array([[0.0], [np.nan], [1.0]]), 3, method)
    with pytest.raises(ValueError, match="at least two rows, got 1"):
        cluster_codes(np.zeros((1, 2)), 1, method)
    with pytest.raises(ValueError, match=r"K must be in 1\.\.3, got 4"):
        cluster_codes(np.eye(3), 4, method)


@given(st.integers(1, 50), st.data())
def test_sizes_are_as_equal_as_possible(num_codes: int, data: st.DataObject) -> None:
    num_clusters = data.draw(st.integers(1, num_codes))
    prior = random_partition(num_codes, num_clusters, data.draw(st.integers(0, 9)))
    assert prior.num_codes == num_codes
    assert prior.num_clusters == num_clusters
    assert np.ptp(prior.sizes) <= 1


def test_every_pair_is_as_likely_to_share_a_cluster() -> None:
    draws = 3_000
    labels = np.stack([random_partition(6, 3, seed).labels for seed in range(draws)])
    for a, b in combinations(range(6), 2):
        together = int((labels[:, a] == labels[:, b]).sum())  # binomial, p = 1/5
        assert abs(together - draws / 5) < 4.5 * (draws * 0.16) ** 0.5


def test_sizes_of_another_prior() -> None:
    sizes = [1, 7, 1, 3, 4]
    prior = random_partition(16, 5, 2, sizes)
    assert sorted(prior.sizes.tolist()) == sorted(sizes)
    assert prior.labels.tolist() != np.repeat(np.arange(5), sizes).tolist()


def test_same_seed_same_random_partition() -> None:
    labels = [random_partition(40, 9, seed).labels.tolist() for seed in (1, 1, 2)]
    assert labels[0] == labels[1] != labels[2]


@pytest.mark.parametrize("num_clusters", [-1, 0, 6])
def test_k_outside_the_codes_is_refused_at_random(num_clusters: int) -> None:
    with pytest.raises(ValueError, match=rf"K must be in 1\.\.5, got {num_clusters}"):
        random_partition(5, num_clusters)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([2, 3], r"must be 3 integers, got shape \(2,\)"),
        ([1.0, 2.0, 2.0], "must be 3 integers, .* of float64"),
        ([2, 0, 3], "cluster 1 has the size 0"),
        ([7, 1, -3], "cluster 2 has the size -3"),
        ([2, 2, 2], "add up to 6, but there are 5 codes"),
    ],
)
def test_sizes_that_are_no_partition_are_refused(sizes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_partition(5, 3, sizes=sizes)
