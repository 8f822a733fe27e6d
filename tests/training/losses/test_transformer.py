from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from tests.training.operators import Operators
from training.losses.transformer import (
    LinearNextClusterLoss,
    NextClusterLoss,
    cross_entropy_and_entropy,
    fused_linear_cross_entropy,
)


class Fixed(nn.Module):
    """The same logits (B, L, K) whatever comes in."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, labels: Tensor, clusters: Tensor) -> Tensor:
        assert clusters.shape[1] == self.logits.shape[1] - 1
        return self.logits


def test_bits_of_a_fair_and_of_a_loaded_coin() -> None:
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0]]])
    found = cross_entropy_and_entropy(logits, torch.tensor([[0, 1]]))
    assert float(found.cross_entropy) == pytest.approx(1 + 2)
    assert float(found.entropy) == pytest.approx(1 + 0.75 * math.log2(4 / 3) + 0.25 * 2)


def test_impossible_clusters_add_nothing_to_the_entropy() -> None:
    logits = torch.tensor([[[0.0, 0.0, -torch.inf]]])
    assert float(cross_entropy_and_entropy(logits, torch.tensor([[1]])).entropy) == pytest.approx(1)


def test_the_loss_is_the_mean_surprise_in_nats() -> None:
    torch.manual_seed(0)
    logits, clusters = torch.randn(3, 4, 7), torch.randint(7, (3, 4))
    losses = NextClusterLoss(Fixed(logits))(torch.zeros(3).long(), clusters)
    bits = float(cross_entropy_and_entropy(logits, clusters).cross_entropy) / 12
    assert float(losses["bits"]) == pytest.approx(bits)
    assert float(losses["loss"]) == pytest.approx(bits * math.log(2))


def test_in_chunks_the_model_is_told_the_same() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(7, 8, 2, 1, num_classes=3, block_size=4, class_dropout=0.0)).eval()
    nn.init.normal_(model.output.weight)
    labels, clusters = torch.tensor([0, 2, 1]), torch.randint(7, (3, 4))
    found = []
    for objective in (NextClusterLoss(model), LinearNextClusterLoss(model)):
        model.zero_grad()
        losses = objective(labels, clusters)
        losses["loss"].backward()
        found.append([losses["loss"], losses["bits"], *(p.grad for p in model.parameters())])
    torch.testing.assert_close(found[1], found[0])


POSITIONS, WIDTH, CLUSTERS = 37, 6, 50
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(hidden: Tensor, weight: Tensor, clusters: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), clusters)


def in_chunks(positions: int) -> Loss:
    def loss(hidden: Tensor, weight: Tensor, clusters: Tensor) -> Tensor:
        return fused_linear_cross_entropy(
            hidden, weight, clusters, chunk_logits=positions * CLUSTERS
        )[0]

    return loss


def factors(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(CLUSTERS, WIDTH, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(CLUSTERS, (POSITIONS,), generator=generator)


def with_gradients(
    loss: Loss, dtype: torch.dtype = torch.float32, scale: float = 0.25
) -> list[Tensor]:
    """The loss, and a share of it by hidden states and weight, as with micro-batches."""
    hidden, weight, clusters = factors(dtype)
    value = loss(hidden, weight, clusters)
    return [value.detach(), *torch.autograd.grad(value * scale, (hidden, weight))]


@pytest.mark.parametrize("positions", [0, 1, 5, POSITIONS, 1000])
def test_chunks_have_the_loss_and_the_gradients_of_the_whole(positions: int) -> None:
    expected = with_gradients(plain)
    torch.testing.assert_close(with_gradients(in_chunks(positions)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_have_the_type_of_autocast(dtype: torch.dtype) -> None:
    exact = with_gradients(plain)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = with_gradients(plain, dtype), with_gradients(in_chunks(5), dtype)
    assert [value.dtype for value in found] == [value.dtype for value in expected]
    for low, coarse, fine in zip(found, expected, exact, strict=True):
        torch.testing.assert_close(low, coarse, rtol=2e-2, atol=1e-3)
        # Chunks are summed in float32: they round no more than the whole does.
        assert (low - fine).norm() <= 1.1 * (coarse - fine).norm()


def test_logits_of_all_positions_are_never_there() -> None:
    with Operators() as whole:
        with_gradients(plain)
    assert whole.largest == POSITIONS * CLUSTERS
    with Operators() as chunked:
        with_gradients(in_chunks(3))
    assert chunked.largest == max(POSITIONS * WIDTH, CLUSTERS * WIDTH, 3 * CLUSTERS)


def test_a_loss_that_is_not_finite_says_so() -> None:
    hidden, weight, clusters = factors()
    with torch.no_grad():
        hidden[20, 0] = torch.inf
        assert not in_chunks(5)(hidden, weight, clusters).isfinite()
