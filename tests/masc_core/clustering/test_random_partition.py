from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masc_core.clustering.random_partition import random_partition


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


def test_same_seed_same_partition() -> None:
    labels = [random_partition(40, 9, seed).labels.tolist() for seed in (1, 1, 2)]
    assert labels[0] == labels[1] != labels[2]


@pytest.mark.parametrize("num_clusters", [-1, 0, 6])
def test_k_outside_the_codes_is_refused(num_clusters: int) -> None:
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
