"""Ragged softmaxes against the dense one whose other scores are minus infinity."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from masc_core.prior import ClusterMap
from masc_core.sampling.cluster_softmax import ClusterSoftmax


def dense_loss(
    prior: ClusterMap, vectors: Tensor, table: Tensor, clusters: Tensor, codes: Tensor
) -> Tensor:
    """Cross-entropy over all codes."""
    is_member = torch.tensor(prior.labels) == clusters[:, None]
    scores = (vectors @ table.T).masked_fill(~is_member, -torch.inf)
    return -scores.log_softmax(-1).gather(1, codes[:, None]).squeeze(1)


@st.composite
def problems(draw: st.DrawFn) -> tuple[ClusterMap, Tensor, Tensor, Tensor]:
    """A prior, vectors, a table and codes; some clusters are large, many have one code."""
    num_codes = draw(st.integers(1, 60))
    labels = draw(st.lists(st.integers(0, 12), min_size=num_codes, max_size=num_codes))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    num_rows, width = draw(st.integers(1, 30)), draw(st.integers(1, 9))
    scale = draw(st.sampled_from([0.01, 1.0, 3.0]))
    vectors = torch.randn(num_rows, width, generator=rng) * scale
    table = torch.randn(num_codes, width, generator=rng)
    codes = torch.randint(num_codes, (num_rows,), generator=rng)
    return ClusterMap.from_labels(labels), vectors, table, codes


@settings(max_examples=150, deadline=None)
@given(problems())
def test_is_the_dense_softmax_with_its_gradients(
    problem: tuple[ClusterMap, Tensor, Tensor, Tensor],
) -> None:
    prior, *tensors, codes = problem
    clusters = prior.encode(codes)
    weights = torch.linspace(0.5, 2, len(codes))
    results = []
    for loss in (ClusterSoftmax(prior).loss, lambda *rest: dense_loss(prior, *rest)):
        vectors, table = (tensor.clone().requires_grad_() for tensor in tensors)
        losses = loss(vectors, table, clusters, codes)
        (losses * weights).sum().backward()  # type: ignore[no-untyped-call]
        results.append((losses.detach(), vectors.grad, table.grad))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    alone = torch.tensor(prior.sizes)[clusters] == 1
    assert not results[0][0][alone].any()  # exactly 0


def test_memory_goes_with_the_clusters_of_the_rows() -> None:
    prior = ClusterMap.from_labels([0] * 500 + list(range(1, 101)) + [7, 8])
    clusters = torch.tensor([7, 3, 8, 7])
    ragged = ClusterSoftmax(prior).ragged(clusters)
    assert ragged.sizes.tolist() == [2, 1, 2, 2]
    assert ragged.rows.tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert ragged.ranks.tolist() == [0, 1, 0, 0, 1, 0, 1]
    assert ragged.codes.tolist() == [506, 600, 502, 507, 601, 506, 600]


def test_padded_members_are_the_same_ones() -> None:
    prior = ClusterMap.from_labels(np.random.default_rng(0).integers(0, 9, 40))
    softmax, clusters = ClusterSoftmax(prior), torch.tensor([8, 0, 3, 8])
    codes, real = softmax.padded(clusters)
    assert codes.shape == (4, prior.sizes.max())
    assert torch.equal(codes[real], softmax.ragged(clusters).codes)
