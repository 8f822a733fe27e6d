from __future__ import annotations

import pytest
import torch

from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.refiner import Refiner, RefinerConfig
from masc_core.prior import ClusterMap
from training.losses.refiner import InClusterLoss

LABELS = [0, 0, 1, 2, 2, 2, 1, 3]  # cluster 3 has one code


def objective(*, singletons: bool) -> InClusterLoss:
    torch.manual_seed(0)
    prior = ClusterMap.from_labels(LABELS)
    gpt = GPT(GPTConfig(vocab_size=4, dim=16, n_layer=1, n_head=2, num_classes=3, block_size=4))
    sizes = RefinerConfig(8, 4, hidden_dim=16, block_size=4, width=8, n_head=2, ffn_dim=16)
    refiner = Refiner(sizes)
    torch.nn.init.normal_(refiner.code_scores.weight)
    return InClusterLoss(refiner.eval(), gpt, prior, singletons=singletons)


@pytest.mark.parametrize("singletons", [True, False])
def test_against_a_softmax_over_all_codes(singletons: bool) -> None:
    loss = objective(singletons=singletons)
    labels, codes = torch.tensor([0, 2]), torch.tensor([[0, 7, 3, 6], [5, 1, 7, 2]])
    clusters = torch.tensor(LABELS)[codes]
    with torch.no_grad():
        hidden = loss._frozen[0].hidden(labels, clusters[:, :-1])
        scores = loss.refiner(hidden, clusters, codes) @ loss.refiner.code_scores.weight.T
        foreign = torch.tensor(LABELS) != clusters[..., None]
        log_p = scores.masked_fill(foreign, -torch.inf).log_softmax(-1)
        expected = -log_p.gather(-1, codes[..., None]).sum()
    count = 8 if singletons else 6
    found = loss(labels, codes)
    assert float(found["loss"].detach()) == pytest.approx(float(expected) / count, rel=1e-5)
    assert float(found["bits"]) == pytest.approx(float(expected) / 8 / 0.6931472, rel=1e-5)


def test_the_transformer_learns_nothing_and_stays_in_evaluation_mode() -> None:
    loss = objective(singletons=True)
    loss.train()
    loss(torch.tensor([1]), torch.tensor([[0, 7, 3, 6]]))["loss"].backward()
    transformer = loss._frozen[0]
    assert not transformer.training
    assert all(parameter.grad is None for parameter in transformer.parameters())
    assert all(p.grad is not None for p in loss.refiner.parameters())
    names = {name.split(".")[0] for name, _ in loss.named_parameters()}
    assert names == {"refiner"}
