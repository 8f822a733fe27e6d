from __future__ import annotations

import numpy as np
import pytest

from masc_core.prior import ClusterMap
from tests.prior_trees import random_order
from training.studies.atlas import AtlasCluster, atlas_clusters, split_clusters


def test_every_code_is_in_one_cluster_which_is_the_priors() -> None:
    order = random_order(60)
    prior = order.tree.cut(30)
    clusters = atlas_clusters(prior, order)
    assert sorted(cluster.number for cluster in clusters) == list(range(30))
    for cluster in clusters:
        assert sorted(cluster.codes) == np.flatnonzero(prior.labels == cluster.number).tolist()
        assert cluster.is_single == (prior.sizes[cluster.number] == 1)


def test_single_codes_come_last_and_each_part_in_the_order_of_leaves() -> None:
    order = random_order(60)
    clusters = atlas_clusters(order.tree.cut(30), order)
    singles = [cluster.is_single for cluster in clusters]
    assert 0 < sum(singles) < 30
    assert singles == sorted(singles)
    for part in (False, True):
        codes = [c.codes for c in clusters if c.is_single is part]
        places = order.starts[np.concatenate(codes)]
        assert (np.diff(places) > 0).all()


def test_heights_are_those_of_the_merges_below_the_cut() -> None:
    order = random_order(60)
    clusters = atlas_clusters(order.tree.cut(30), order)
    heights = [cluster.height for cluster in clusters]
    assert None not in heights
    assert max(h for h in heights if h is not None) == order.tree.heights[60 - 30 - 1]
    assert all((cluster.height == 0) == cluster.is_single for cluster in clusters)


def test_a_cluster_from_elsewhere_stands_where_most_of_it_is_without_a_height() -> None:
    order = random_order(60)
    labels = order.tree.cut(60).labels.copy()
    labels[order.codes[[0, 40, 41, 42]]] = 99
    clusters = atlas_clusters(ClusterMap.from_labels(labels), order)
    assert clusters[0].height is None
    assert clusters[0].codes.tolist() == order.codes[[0, 40, 41, 42]].tolist()
    labels[order.codes[10:13]] = 98
    clusters = atlas_clusters(ClusterMap.from_labels(labels), order)
    assert [len(cluster.codes) for cluster in clusters[:2]] == [3, 4]


def cluster_of(size: int, number: int = 0) -> AtlasCluster:
    return AtlasCluster(number, np.arange(size), 0.5)


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ([3, 3, 4, 1], [[3, 3, 4], [1]]),
        ([3, 8], [[3], [8]]),
        ([12, 2, 30, 1, 1], [[12], [2], [30], [1, 1]]),
        ([5], [[5]]),
    ],
)
def test_parts_hold_whole_clusters(sizes: list[int], parts: list[list[int]]) -> None:
    clusters = [cluster_of(size) for size in sizes]
    split = [[len(c.codes) for c in part] for part in split_clusters(clusters, 10)]
    assert split == parts
