from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from training.losses.transformer import NextCluster, NextClusterInChunks, cross_entropy_and_entropy


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
    losses = NextCluster(Fixed(logits))(torch.zeros(3).long(), clusters)
    bits = float(cross_entropy_and_entropy(logits, clusters).cross_entropy) / 12
    assert float(losses["bits"]) == pytest.approx(bits)
    assert float(losses["loss"]) == pytest.approx(bits * math.log(2))


def test_in_chunks_the_model_is_told_the_same() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(7, 8, 2, 1, num_classes=3, block_size=4, class_dropout=0.0)).eval()
    nn.init.normal_(model.output.weight)
    labels, clusters = torch.tensor([0, 2, 1]), torch.randint(7, (3, 4))
    found = []
    for objective in (NextCluster(model), NextClusterInChunks(model)):
        model.zero_grad()
        losses = objective(labels, clusters)
        losses["loss"].backward()
        found.append([losses["loss"], losses["bits"], *(p.grad for p in model.parameters())])
    torch.testing.assert_close(found[1], found[0])
