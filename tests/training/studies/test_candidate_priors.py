from __future__ import annotations

import numpy as np
import pytest

from masc_core.clustering.centroid_linkage import centroid_linkage
from masc_core.clustering.methods import cluster_codes
from masc_core.tree import Linkage, SemanticTree, build_tree
from training.stages.configs import CANDIDATES
from training.studies import candidate_priors
from training.studies.candidate_priors import CandidateBuilder

ROWS = np.random.default_rng(0).normal(size=(24, 4))


@pytest.mark.parametrize("method", CANDIDATES)
def test_every_method_makes_what_it_is_named_for(method: str) -> None:
    count = 24 if method == "identity" else 6
    (candidate,) = CandidateBuilder(ROWS, seed=3).build([method], [count])
    assert candidate.prior is not None
    assert candidate.prior.num_clusters == count
    assert candidate.file == f"{method}-{count}.npz"
    if method != "average-shuffled":
        expected = cluster_codes(ROWS, count, method, seed=3)
        assert np.array_equal(candidate.prior.labels, expected.labels)


def test_shuffled_clusters_have_the_sizes_of_the_tree_but_not_its_members() -> None:
    average, shuffled = CandidateBuilder(ROWS, seed=0).build(["average", "average-shuffled"], [8])
    assert average.prior is not None
    assert shuffled.prior is not None
    assert sorted(shuffled.prior.sizes) == sorted(average.prior.sizes)
    assert not np.array_equal(shuffled.prior.labels, average.prior.labels)


def test_trees_are_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    merged: list[None] = []

    def counted_tree(rows: np.ndarray, linkage: Linkage) -> SemanticTree:
        built.append(linkage)
        return build_tree(rows, linkage)

    def counted_merges(rows: np.ndarray) -> np.ndarray:
        merged.append(None)
        return centroid_linkage(rows)

    monkeypatch.setattr(candidate_priors, "build_tree", counted_tree)
    monkeypatch.setattr(candidate_priors, "centroid_linkage", counted_merges)
    methods = ["average", "average-shuffled", "complete", "centroid"]
    candidates = list(CandidateBuilder(ROWS, seed=0).build(methods, [12, 6, 3]))
    assert built == ["average", "complete"]
    assert len(merged) == 1
    asked = [(c.method, c.num_clusters) for c in candidates]
    assert asked == [(method, count) for count in (12, 6, 3) for method in methods]


def test_what_a_method_cannot_make_has_a_reason() -> None:
    uneven, flat, possible = CandidateBuilder(ROWS, seed=0).build(
        ["balanced-kmeans", "identity", "average"], [5]
    )
    for candidate in (uneven, flat):
        assert candidate.prior is None
        assert "24" in candidate.reason
        assert candidate.num_clusters == 5
    assert possible.prior is not None
    assert possible.reason == ""
