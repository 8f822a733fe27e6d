from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from training.losses.alignment import AlignmentLoss, log_likelihood

BETA, WEIGHT, NULL = 0.5, 4.0, 3


def tiny(**sizes: Any) -> GPT:
    torch.manual_seed(0)
    no_dropout: dict[str, Any] = {"token_dropout": 0.0, "resid_dropout": 0.0, "ffn_dropout": 0.0}
    return GPT(GPTConfig(dim=8, n_layer=1, n_head=2, **no_dropout, **sizes))


def pair() -> tuple[GPT, GPT]:
    """A model and a reference that it has moved away from."""
    reference = tiny(vocab_size=5, block_size=4, num_classes=NULL, class_dropout=0.5)
    nn.init.normal_(reference.output.weight)
    model = copy.deepcopy(reference)
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    return model, reference


def plain_log_p(model: GPT, label: int, clusters: Tensor) -> Tensor:
    """The product of the probabilities of one image's tokens, one after the other."""
    log_p = torch.zeros(())
    for position, token in enumerate(clusters):
        logits = model(torch.tensor([label]), clusters[None, :position])
        log_p = log_p + logits[0, -1].log_softmax(0)[token]
    return log_p


def test_against_the_formula_image_by_image() -> None:
    model, reference = pair()
    labels, negatives = torch.tensor([0, 2, NULL, 1]), torch.tensor([1, 2, 0, 2])
    clusters = torch.randint(5, (4, 4))
    found = AlignmentLoss(model, reference, BETA, WEIGHT)(labels, negatives, clusters)
    found["loss"].backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    expected, margins = torch.zeros(()), []
    for label, negative, image in zip(labels.tolist(), negatives.tolist(), clusters, strict=True):
        own, other = (
            plain_log_p(model, c, image) - plain_log_p(reference, c, image).detach()
            for c in (label, negative)
        )
        expected = expected + (1 + (-BETA * own).exp()).log()
        if label != NULL:
            expected = expected + WEIGHT * (1 + (BETA * other).exp()).log()
        if label not in {NULL, negative}:
            margins.append(float((own - other).detach()))
    expected = expected / 4 / WEIGHT
    expected.backward()  # type: ignore[no-untyped-call]
    assert float(found["loss"].detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(found["margin"]) == pytest.approx(sum(margins) / len(margins), rel=1e-4)
    assert float(found["accuracy"]) == sum(m > 0 for m in margins) / len(margins)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-4, atol=1e-6)


def test_the_reference_stays_as_it_is_and_labels_are_dropped_for_both_alike() -> None:
    _, reference = pair()
    model = copy.deepcopy(reference)
    loss = AlignmentLoss(model, reference, BETA, WEIGHT).train()
    labels, clusters = torch.tensor([0, 1, 2]), torch.randint(5, (3, 4))
    # Equal models differ in nothing: a label that one of them dropped would show.
    found = loss(labels, labels.roll(1), clusters)
    assert float(found["margin"]) == 0.0
    found["loss"].backward()
    assert not reference.training
    assert all(weight.grad is None for weight in reference.parameters())
    assert {name.split(".")[0] for name, _ in loss.named_parameters()} == {"model"}


def test_the_minimum_has_more_of_the_class_than_the_data() -> None:
    """Two classes of one-token images: what is learned is what guidance would do to the data."""
    reference = tiny(vocab_size=3, block_size=1, num_classes=2, class_dropout=0.0)
    data = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]])  # p(x | c); p(x) is 0.35, 0.3, 0.35
    labels = torch.arange(2).repeat_interleave(3)
    images = torch.arange(3).repeat(2)[:, None]

    def learn(model: GPT, loss_of: Callable[[GPT], Tensor], steps: int) -> Tensor:
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(model).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            return model(torch.arange(2), images[:2, :0])[:, 0].softmax(1)

    def cross_entropy(model: GPT) -> Tensor:
        return -(data.flatten() * log_likelihood(model, labels, images)).sum()

    torch.testing.assert_close(learn(reference, cross_entropy, 400), data, rtol=0.02, atol=0.01)
    beta, model = 1.0, copy.deepcopy(reference)

    # Of ten images a class as many as it has, each under either class as its negative.
    counts = (10 * data.flatten()).round().long()
    rows = [part.repeat_interleave(counts, 0).repeat(2, 1) for part in (labels[:, None], images)]
    negatives = torch.arange(2).repeat_interleave(20)

    def aligned(model: GPT) -> Tensor:
        loss = AlignmentLoss(model, reference, beta, 1.0)
        return loss(rows[0].flatten(), negatives, rows[1])["loss"]

    found = learn(model, aligned, 150)
    guided = data * (data / data.mean(0)) ** (1 / beta)
    guided = guided / guided.sum(1, keepdim=True)
    assert found[0, 0] > data[0, 0] + 0.05
    assert found[1, 2] > data[1, 2] + 0.05
    assert (found - guided).abs().max() < 0.5 * (data - guided).abs().max()
