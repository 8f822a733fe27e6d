from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from masc_core.arrays import FloatArray
from masc_core.clustering import kmeans as module
from masc_core.clustering.kmeans import kmeans
from masc_core.prior import ClusterMap
from tests.masc_core.clustering.codebooks import clustered_rows, codebooks

Init = Literal["random", "k-means++"]


def inertia(rows: FloatArray, prior: ClusterMap) -> float:
    centres = np.stack([rows[prior.labels == k].mean(axis=0) for k in range(prior.num_clusters)])
    return float(np.square(rows - centres[prior.labels]).sum())


@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_the_papers_settings_on_one_thread(init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[Any] = []

    class Recorded(KMeans):  # type: ignore[misc]  # it has no stubs
        def fit(self, X: FloatArray) -> None:  # noqa: N803
            super().fit(X)
            fitted.append(self)

    monkeypatch.setattr(module, "KMeans", Recorded)
    with threadpool_limits(limits=4):
        prior = kmeans(clustered_rows(300), 20, init, seed=3)
    model = fitted[0]
    settings_used = (model.init, model.n_init, model.max_iter, model.tol, model.random_state)
    assert settings_used == (init, 10, 300, 1e-4, 3)
    assert model._n_threads == 1
    assert np.array_equal(prior.labels, ClusterMap.from_labels(model.labels_).labels)


@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_same_seed_same_clusters(init: Init) -> None:
    rows = clustered_rows(200)
    labels = [kmeans(rows, 40, init, seed=seed).labels.tolist() for seed in (1, 1, 2)]
    assert labels[0] == labels[1] != labels[2]


def test_the_best_run_counts() -> None:
    rows = clustered_rows(300)
    runs = [inertia(rows, kmeans(rows, 30, "random", num_runs=n)) for n in (1, 10)]
    assert runs[1] < runs[0]


def test_clear_clusters_are_found() -> None:
    rng = np.random.default_rng(0)
    which = np.concatenate([np.arange(5), rng.integers(0, 5, 95)])
    rows = 9 * np.eye(5)[which] + 0.1 * rng.normal(size=(100, 5))
    assert np.array_equal(kmeans(rows, 5).labels, which)


@settings(max_examples=50, deadline=None)
@given(codebooks(), st.sampled_from(["random", "k-means++"]), st.data())
def test_exactly_k_clusters_also_of_equal_rows(
    rows: FloatArray, init: Init, data: st.DataObject
) -> None:
    num_clusters = data.draw(st.integers(1, len(rows)))
    prior = kmeans(rows, num_clusters, init, num_runs=2)
    assert prior.num_clusters == num_clusters
    if num_clusters >= len(np.unique(rows, axis=0)):  # only equal rows share a cluster
        assert inertia(rows, prior) == pytest.approx(0.0, abs=1e-12)


def test_empty_clusters_get_the_farthest_rows_that_have_company() -> None:
    labels = np.array([0, 0, 0, 2, 0, 2])
    distances = np.array([0.0, 5.0, 6.0, 9.0, 1.0, 8.0])
    filled = module._without_empty(labels, distances, 5)
    assert filled.tolist() == [0, 4, 3, 1, 0, 2]
    assert labels.tolist() == [0, 0, 0, 2, 0, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_runs": 0}, "n_init"), ({"init": "x"}, "init"), ({"seed": -1}, "random_state")],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kmeans(np.eye(3), 2, **options)
