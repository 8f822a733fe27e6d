from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from masc_core.codebook import check_num_clusters, checked_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_tensors_and_arrays_give_the_same_rows(dtype: torch.dtype) -> None:
    codebook = (torch.randn(20, 4, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    codebook.requires_grad_(codebook.is_floating_point())
    rows = checked_rows(codebook)
    assert rows.dtype == np.float64
    assert rows.tolist() == codebook.tolist()
    assert np.array_equal(rows, checked_rows(codebook.detach().double().numpy()))


def test_lists_and_integers_are_widened() -> None:
    rows = checked_rows([[1, 2], [3, 4], [5, 6]])
    assert rows.dtype == np.float64
    assert rows.tolist() == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


def test_rows_are_a_copy_in_c_order() -> None:
    codebook = np.asfortranarray(np.arange(6.0).reshape(3, 2))
    rows = checked_rows(codebook)
    rows[0] = 9.0
    assert rows.flags.c_contiguous
    assert codebook[0].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("codebook", "message"),
    [
        (np.zeros(4), r"has the shape \(V, E\), got \(4,\)"),
        (np.zeros((2, 2, 2)), r"has the shape \(V, E\)"),
        (np.zeros((3, 0)), r"has the shape \(V, E\), got \(3, 0\)"),
        (np.zeros((1, 4)), "at least two rows, got 1"),
        (np.zeros((0, 4)), "at least two rows, got 0"),
        (
            np.array([[0.0], [1.0], [np.nan], [np.inf]]),
            r"row 2 has a NaN or an infinity \(2 such\)",
        ),
        (torch.tensor([[0.0, -torch.inf], [1.0, 0.0]]), "row 0 has a NaN or an infinity"),
        (np.array([["a"], ["b"]]), "holds real numbers"),
        (np.array([[1j], [2j]]), "holds real numbers"),
        (np.array([[True], [False]]), "holds real numbers"),
        (torch.tensor([[1j], [2j]]), "holds real numbers"),
        (torch.tensor([[True], [False]]), "holds real numbers"),
    ],
)
def test_bad_codebooks_are_refused(codebook: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_rows(codebook)


@pytest.mark.parametrize("num_clusters", [-1, 0, 6])
def test_k_outside_the_codes_is_refused(num_clusters: int) -> None:
    with pytest.raises(ValueError, match=rf"^K must be in 1\.\.5, got {num_clusters}$"):
        check_num_clusters(num_clusters, 5)


@pytest.mark.parametrize("num_clusters", [1, 5])
def test_k_of_one_and_of_all_codes_is_allowed(num_clusters: int) -> None:
    check_num_clusters(num_clusters, 5)
