"""The loss of the targets' clusters: IAR's numbers, the definition, and what must not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.prior import ClusterMap
from masc_core.sampling.cluster_softmax import ClusterSoftmax
from tests.golden_files import assert_close, load_golden
from training.losses.transformer import (
    ClusterLevel,
    LinearNextClusterLoss,
    cluster_cross_entropy_and_entropy,
    fused_linear_cross_entropy,
    on_device,
)

V, N = 96, 40
UNEQUAL = ClusterMap.from_labels(np.repeat(np.arange(7), [1, 2, 5, 10, 18, 25, 35]))


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_golden("iar/io.safetensors")


def losses_of(
    logits: Tensor, targets: Tensor, *levels: ClusterLevel, positions: int = 7
) -> tuple[Tensor, Tensor, Tensor]:
    """Total, parts, and the gradient by the logits, which come in as they are."""
    hidden = logits.detach().requires_grad_()
    total, parts = fused_linear_cross_entropy(
        hidden,
        torch.eye(logits.shape[1]),
        targets,
        on_device(levels, logits.device),
        chunk_logits=positions * logits.shape[1],
    )
    (grad,) = torch.autograd.grad(total, hidden)
    return total.detach(), parts, grad


def by_definition(logits: Tensor, targets: Tensor, partition: ClusterMap) -> Tensor:
    """-log of the summed probabilities of the target's cluster, each (n,), in float64."""
    labels = torch.tensor(partition.labels)
    same = labels[None] == labels[targets][:, None]
    return -(logits.double().softmax(-1) * same).sum(-1).log()


def numbers(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(N, V, generator=generator)
    return logits, torch.randint(V, (N,), generator=generator)


def iar_model() -> GPT:
    model = GPT(GPTConfig(V, 64, 2, 4, num_classes=10, block_size=16)).eval()
    model.load_state_dict(load_golden("iar/weights.safetensors"))
    return model


def test_both_losses_and_the_gradients_are_those_of_iar(golden: dict[str, Tensor]) -> None:
    model, tokens = iar_model(), golden["mapping_old_to_new"][golden["raw_tokens"]]
    assert torch.equal(tokens, golden["tokens"])
    assert_close(model(golden["labels"], tokens[:, :-1]), golden["logits"], atol=2e-4, rtol=2e-4)
    blocks = ClusterMap.from_labels(np.arange(V) // 8)
    losses = LinearNextClusterLoss(model, [ClusterLevel(blocks, 1.0)])(golden["labels"], tokens)
    assert losses.keys() == {"loss", "bits", "cluster_bits_12"}
    nats = {name: losses[name] * math.log(2) for name in ("bits", "cluster_bits_12")}
    assert_close(nats["bits"], golden["loss_token"], atol=1e-5, rtol=1e-5)
    assert_close(nats["cluster_bits_12"], golden["loss_cluster"], atol=1e-5, rtol=1e-5)
    losses["loss"].backward()
    for name in ("output", "tok_embeddings"):
        grad = getattr(model, name).weight.grad
        assert_close(grad, golden[f"grad.{name}.weight"], atol=2e-5, rtol=1e-3)


def test_unequal_clusters_are_those_of_the_definition(golden: dict[str, Tensor]) -> None:
    logits, targets = golden["logits"].flatten(0, 1), golden["tokens"].flatten()
    partition = ClusterMap.from_labels(golden["unequal.assignment"].numpy())
    assert 1 in partition.sizes
    _, parts, both = losses_of(logits, targets, ClusterLevel(partition, 1.0))
    assert_close(parts[1], golden["unequal.loss_cluster"], atol=1e-5, rtol=1e-5)
    _, _, token_alone = losses_of(logits, targets)
    expected = golden["unequal.grad_logits"].flatten(0, 1)
    assert_close(both - token_alone, expected, atol=1e-5, rtol=1e-5)
    found = cluster_cross_entropy_and_entropy(
        golden["logits"], golden["tokens"], ClusterSoftmax(partition)
    )
    log_p = golden["unequal.cluster_logprob"]
    entropy = -(log_p.exp() * log_p).sum(-1) / math.log(2)
    assert_close(found.entropy, entropy, atol=1e-5, rtol=1e-5)


def test_extreme_logits_overflow_nothing(golden: dict[str, Tensor]) -> None:
    blocks = ClusterMap.from_labels(np.arange(V) // 8)
    targets = golden["extreme.targets"]
    _, parts, grad = losses_of(golden["extreme.logits"], targets, ClusterLevel(blocks, 1.0))
    expected = torch.stack([golden["extreme.loss_token"], golden["extreme.loss_cluster"]])
    assert_close(parts, expected, atol=1e-3, rtol=1e-4)
    _, parts, larger = losses_of(1e6 * golden["extreme.logits"], targets, ClusterLevel(blocks, 1.0))
    assert torch.stack([*parts, *grad.flatten(), *larger.flatten()]).isfinite().all()


def test_equal_clusters_are_the_blocks_of_a_reshape() -> None:
    logits, targets = numbers()
    blocks = ClusterMap.from_labels(np.arange(V) // 12)
    leaf = logits.clone().requires_grad_()
    cluster_logits = leaf.view(N, 8, 12).logsumexp(-1)
    expected = F.cross_entropy(leaf, targets) + 0.5 * F.cross_entropy(cluster_logits, targets // 12)
    total, _, grad = losses_of(logits, targets, ClusterLevel(blocks, 0.5))
    assert_close(total, expected.detach(), atol=1e-6, rtol=1e-6)
    assert_close(grad, torch.autograd.grad(expected, leaf)[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("positions", [1, 7, 1000])
def test_several_levels_are_a_weighted_sum(positions: int) -> None:
    logits, targets = numbers(1)
    coarse = ClusterMap.from_labels(UNEQUAL.labels // 3)
    levels = [ClusterLevel(coarse, 0.25), ClusterLevel(UNEQUAL, 2.0)]
    total, parts, grad = losses_of(logits, targets, *levels, positions=positions)
    leaf = logits.double().requires_grad_()
    expected = [
        F.cross_entropy(leaf, targets),
        by_definition(leaf, targets, coarse).mean(),
        by_definition(leaf, targets, UNEQUAL).mean(),
    ]
    weighted = expected[0] + 0.25 * expected[1] + 2.0 * expected[2]
    assert_close(parts.double(), torch.stack(expected).detach(), atol=1e-6, rtol=1e-5)
    assert_close(total.double(), weighted.detach(), atol=1e-6, rtol=1e-5)
    assert_close(grad.double(), torch.autograd.grad(weighted, leaf)[0], atol=1e-7, rtol=1e-4)


def test_one_cluster_a_token_doubles_the_loss_and_one_for_all_adds_nothing() -> None:
    logits, targets = numbers()
    _, _, plain = losses_of(logits, targets)
    _, parts, grad = losses_of(logits, targets, ClusterLevel(ClusterMap.identity(V), 1.0))
    assert torch.equal(parts[0], parts[1])
    assert_close(grad, 2 * plain, atol=1e-8, rtol=1e-5)
    everything = ClusterMap.from_labels(np.zeros(V))
    _, parts, grad = losses_of(logits, targets, ClusterLevel(everything, 1.0))
    assert float(parts[1]) == pytest.approx(0, abs=1e-6)
    assert_close(grad, plain, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("positions", [1, 7, 1000])
def test_the_entropy_of_clusters_sums_the_probabilities_of_tokens(positions: int) -> None:
    logits, targets = numbers()
    logits[0] = 0
    logits[0, targets[0]] = 1e4  # of all others the probability is 0
    shaped, softmax = logits.view(4, 10, V), ClusterSoftmax(UNEQUAL)
    found = cluster_cross_entropy_and_entropy(
        shaped, targets.view(4, 10), softmax, chunk_logits=positions * V
    )
    p = logits.double().softmax(-1)
    sums = torch.stack([p[:, UNEQUAL.labels == k].sum(-1) for k in range(7)], dim=-1)
    entropy = torch.special.entr(sums).sum(-1) / math.log(2)
    assert_close(found.entropy.double().flatten(), entropy, atol=1e-5, rtol=1e-5)
    cross = by_definition(logits, targets, UNEQUAL) / math.log(2)
    assert_close(found.cross_entropy.double().flatten(), cross, atol=1e-6, rtol=1e-5)


def test_numbers_of_the_tokens_do_not_matter() -> None:
    logits, targets = numbers()
    order = torch.randperm(V, generator=torch.Generator().manual_seed(2))  # new -> old
    numbered = torch.empty_like(order).index_put((order,), torch.arange(V))
    renumbered = ClusterMap.from_labels(UNEQUAL.labels[order.numpy()])
    total, parts, grad = losses_of(logits, targets, ClusterLevel(UNEQUAL, 1.0))
    found = losses_of(logits[:, order], numbered[targets], ClusterLevel(renumbered, 1.0))
    assert_close(found[0], total, atol=1e-6, rtol=1e-6)
    assert_close(found[1], parts, atol=1e-6, rtol=1e-6)
    assert_close(found[2], grad[:, order], atol=1e-7, rtol=1e-5)
