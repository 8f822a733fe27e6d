from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masc_core.errors import ArtifactError
from masc_core.prior import ClusterMap

LABELS = [0, 1, 0, 2, 1, 0]


@pytest.fixture
def prior() -> ClusterMap:
    return ClusterMap(np.array(LABELS))


def test_views_of_the_partition(prior: ClusterMap) -> None:
    assert (prior.num_codes, prior.num_clusters) == (6, 3)
    assert prior.labels.tolist() == LABELS
    assert prior.members.tolist() == [0, 2, 5, 1, 4, 3]
    assert prior.offsets.tolist() == [0, 3, 5, 6]
    assert prior.sizes.tolist() == [3, 2, 1]
    for array in (prior.labels, prior.members, prior.offsets, prior.sizes):
        assert array.dtype == np.int64


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40))
def test_any_ids_become_the_canonical_numbering(ids: list[int]) -> None:
    prior = ClusterMap.from_labels(ids)
    order: list[int] = []
    for code in ids:
        if code not in order:
            order.append(code)
    assert prior.labels.tolist() == [order.index(code) for code in ids]
    assert prior.num_clusters == len(order)
    for cluster in range(prior.num_clusters):
        members = prior.members[prior.offsets[cluster] : prior.offsets[cluster + 1]]
        assert members.tolist() == [i for i, code in enumerate(ids) if code == order[cluster]]


def test_arrays_are_read_only_copies() -> None:
    labels = np.array(LABELS)
    prior = ClusterMap(labels)
    labels[0] = 5
    assert prior.labels[0] == 0
    for array in (prior.labels, prior.members, prior.offsets):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 0], "code 0 has cluster 1, but clusters must be numbered"),
        ([0, 2, 1], "code 1 has cluster 2"),
        ([0, 0, 2], "code 2 has cluster 2"),
        ([0, -1], "code 1 has cluster -1"),
        ([], "one non-empty row"),
        ([[0, 1]], "one non-empty row"),
        ([0.0, 1.0], "must be integers, got float64"),
        ([True, False], "must be integers, got bool"),
    ],
)
def test_other_labels_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClusterMap(np.array(labels))


@pytest.mark.parametrize("labels", [[], [[0, 1]]])
def test_ids_of_another_shape_are_refused(labels: Any) -> None:
    with pytest.raises(ValueError, match="one non-empty row"):
        ClusterMap.from_labels(labels)


def test_identity_is_the_flat_vocabulary() -> None:
    prior = ClusterMap.identity(7)
    assert prior.num_clusters == 7
    assert prior.labels.tolist() == prior.members.tolist() == list(range(7))
    assert prior.encode(np.arange(7)).tolist() == list(range(7))


def test_identity_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one code"):
        ClusterMap.identity(0)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 1, 3), (0,), (0, 4)])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
def test_encode_any_shape(prior: ClusterMap, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
    codes = np.random.default_rng(0).integers(0, 6, shape).astype(dtype)
    clusters = prior.encode(codes)
    assert isinstance(clusters, np.ndarray)
    assert clusters.dtype == np.int64
    assert clusters.shape == shape
    expected = [LABELS[code] for code in codes.flatten().tolist()]
    assert clusters.flatten().tolist() == expected

    tensor = prior.encode(torch.from_numpy(codes.astype(np.int32)))
    assert isinstance(tensor, torch.Tensor)
    assert tensor.dtype == torch.int64
    assert tensor.shape == shape
    assert tensor.flatten().tolist() == expected


def test_encode_accepts_lists(prior: ClusterMap) -> None:
    assert prior.encode([[5, 4], [3, 2]]).tolist() == [[0, 1], [2, 0]]


@pytest.mark.parametrize(("code", "shown"), [(-1, "-1"), (6, "6")])
def test_encode_refuses_codes_outside(prior: ClusterMap, code: int, shown: str) -> None:
    with pytest.raises(ValueError, match=f"code {shown} is outside 0..5"):
        prior.encode(np.array([0, code]))
    with pytest.raises(ValueError, match=f"code {shown} is outside 0..5"):
        prior.encode(torch.tensor([0, code]))


def test_encode_refuses_fractions(prior: ClusterMap) -> None:
    with pytest.raises(ValueError, match="must be integers, got float64"):
        prior.encode(np.array([1.0]))
    with pytest.raises(ValueError, match=r"must be integers, got torch\.float32"):
        prior.encode(torch.tensor([1.0]))


def test_a_partition_over_the_clusters_of_a_finer_one(prior: ClusterMap) -> None:
    coarse = ClusterMap.from_labels(np.array([0, 1, 1])[prior.labels])
    assert coarse.over(prior).labels.tolist() == [0, 1, 1]
    assert coarse.over(ClusterMap.identity(6)).labels.tolist() == coarse.labels.tolist()
    with pytest.raises(ValueError, match="divides the cluster of code"):
        prior.over(coarse)
    with pytest.raises(ValueError, match="is over 6 codes, not 5"):
        coarse.over(ClusterMap.identity(5))


def test_file_is_the_public_mapping_format(prior: ClusterMap, tmp_path: Path) -> None:
    prior.save(tmp_path / "prior.npz")
    with np.load(tmp_path / "prior.npz") as archive:
        assert sorted(archive.files) == ["k", "mapping", "n"]
        assert archive["mapping"].dtype == np.int64
        assert archive["mapping"].tolist() == LABELS
        assert (int(archive["k"]), int(archive["n"])) == (3, 6)


def test_reads_a_file_of_another_program(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "theirs.npz", mapping=np.array(LABELS), k=3, n=6)
    prior = ClusterMap.load(tmp_path / "theirs.npz")
    assert prior.labels.tolist() == LABELS
    assert prior.num_clusters == 3


@pytest.mark.parametrize(
    ("mapping", "k", "n", "message"),
    [
        (LABELS, 4, 6, "'k' is 4, but the mapping has 3 clusters"),
        (LABELS, 3, 7, "'n' is 7, but the mapping has 6 codes"),
        (LABELS, 3.0, 6, "'k' is not an integer"),
        (LABELS, 3, [6], "'n' is not an integer"),
        ([0, 2, 2], 3, 3, "code 1 has cluster 2"),
        ([1, 0, 0], 2, 3, "code 0 has cluster 1"),
        ([0.0, 1.0], 2, 2, "must be integers"),
        ([[0, 1]], 2, 2, "one non-empty row"),
    ],
)
def test_files_that_contradict_themselves_are_refused(
    tmp_path: Path, mapping: Any, k: Any, n: Any, message: str
) -> None:
    path = tmp_path / "prior.npz"
    np.savez(path, mapping=np.array(mapping), k=k, n=n)
    with pytest.raises(ArtifactError, match=message) as caught:
        ClusterMap.load(path)
    assert caught.value.path == str(path)
