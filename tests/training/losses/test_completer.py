from __future__ import annotations

import pytest
import torch
from torch import Tensor

from masc_core.prior import ClusterMap
from tests.tiny_bundle import tiny_completer
from training.losses import transformer
from training.losses.completer import CompletionLoss

PRIOR = ClusterMap.from_labels([i // 2 for i in range(28)] + [14, 15, 15, 15])  # 14 has one code
LABELS = torch.tensor([0, 4, 1])
CODES = torch.randint(32, (3, 16), generator=torch.Generator().manual_seed(0))
CODES[0, :4] = 28  # alone in its cluster


def masked_loss(loss: CompletionLoss, labels: Tensor, codes: Tensor) -> Tensor:
    """Cross-entropy of the full softmax with all codes of other clusters at minus infinity."""
    clusters = torch.tensor(PRIOR.labels)[codes]
    foreign = torch.tensor(PRIOR.labels) != clusters[..., None]
    logits = loss.completer(labels, clusters).masked_fill(foreign, -torch.inf)
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten())


@pytest.mark.parametrize("chunk", [1 << 25, 3 * 32])
def test_of_members_is_the_full_softmax_without_the_others(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer.fused_linear_cross_entropy, "__defaults__", ((), chunk))
    loss = CompletionLoss(tiny_completer(), PRIOR)
    found = loss(LABELS, CODES)
    found["loss"].backward()
    gradients = {name: p.grad for name, p in loss.named_parameters()}
    loss.zero_grad()
    expected = masked_loss(loss, LABELS, CODES)
    expected.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found["loss"], expected, rtol=1e-5, atol=1e-5)
    assert float(found["bits"]) == pytest.approx(float(expected.detach()) / 0.6931472, rel=1e-5)
    for name, parameter in loss.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-5)
    own, in_cluster = loss.bits(LABELS, CODES)
    assert own == in_cluster
    assert float(own.detach()) == pytest.approx(float(found["bits"]), rel=1e-5)


def test_the_full_softmax_pays_for_the_cluster_too() -> None:
    loss = CompletionLoss(tiny_completer(softmax="full"), PRIOR)
    clusters = torch.tensor(PRIOR.labels)[CODES]
    with torch.no_grad():
        logits = loss.completer(LABELS, clusters).flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, CODES.flatten()) / 0.6931472
        own, in_cluster = loss.bits(LABELS, CODES)
        members = masked_loss(loss, LABELS, CODES) / 0.6931472
        assert float(loss(LABELS, CODES)["bits"]) == pytest.approx(float(expected), rel=1e-5)
    assert (float(own), float(in_cluster)) == pytest.approx((float(expected), float(members)))


def test_clusters_of_one_code_cost_nothing() -> None:
    loss = CompletionLoss(tiny_completer(), PRIOR)
    alone = torch.full((2, 16), 28)
    found = loss(LABELS[:2], alone)["loss"]
    found.backward()
    assert found == 0
    assert all(p.grad is not None and not p.grad.any() for p in loss.parameters())


def test_corrupted_clusters_are_of_the_family() -> None:
    siblings = ClusterMap.from_labels([i // 4 for i in range(16)])
    loss = CompletionLoss(tiny_completer(), PRIOR, siblings, corruption=0.5)
    clusters = torch.arange(16).repeat(500, 1)
    assert torch.equal(loss.eval()._corrupt(clusters), clusters)
    torch.manual_seed(0)
    read = loss.train()._corrupt(clusters)
    assert torch.equal(read // 4, clusters // 4)
    # Half of them are drawn anew, of four.
    assert float((read != clusters).float().mean()) == pytest.approx(0.5 * 3 / 4, abs=0.02)
    assert float((read == 4).float()[:, 4:8].mean()) == pytest.approx(1 / 4, abs=0.02)


def test_of_independent_codes_the_clusters_tell_nothing_more() -> None:
    """Four codes of each cluster, all alike: log2(V / K) bits, unless a code is seen itself."""
    completer = tiny_completer(
        num_clusters=8, token_dropout=0.0, resid_dropout=0.0, ffn_dropout=0.0
    )
    torch.nn.init.zeros_(completer.output.weight)
    labels = torch.randperm(32, generator=torch.Generator().manual_seed(0)) // 4
    loss = CompletionLoss(completer, ClusterMap.from_labels(labels.tolist()))
    optimizer = torch.optim.Adam(completer.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(150):
        optimizer.zero_grad()
        codes = torch.randint(32, (16, 16), generator=generator)
        loss(torch.randint(5, (16,), generator=generator), codes)["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        codes = torch.randint(32, (500, 16), generator=generator)
        bits = loss.bits(torch.zeros(500, dtype=torch.int64), codes)
    assert 1.98 < float(bits[0]) < 2.1
