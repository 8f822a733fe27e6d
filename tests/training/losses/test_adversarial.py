from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.golden_files import assert_close, load_golden
from tests.training.losses.test_discriminator import golden_discriminator
from training.losses.adversarial import (
    HIGHEST_BALANCE,
    accuracy,
    discriminator_logits,
    discriminator_loss,
    generator_loss,
    gradient_balance,
)


def golden_logits() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    io = load_golden("vq_gan/io.safetensors")
    return io, io["logits_real_train"], io["logits_fake_train"]


def test_hinge_losses_reproduce_upstream() -> None:
    io, real, made = golden_logits()
    loss = discriminator_loss("hinge", real, made)
    assert_close(loss, io["hinge_d_loss"], atol=1e-5, rtol=1e-4)
    assert_close(generator_loss("hinge", made), io["hinge_gen_loss"], atol=1e-5, rtol=1e-4)


def test_non_saturating_losses() -> None:
    io, real, made = golden_logits()
    # What upstream calls vanilla; its "non-saturating" losses are not these.
    loss = discriminator_loss("non-saturating", real, made)
    assert_close(loss, io["vanilla_d_loss"], atol=1e-5, rtol=1e-4)
    entropy = torch.nn.functional.binary_cross_entropy(made.sigmoid(), torch.ones_like(made))
    assert_close(generator_loss("non-saturating", made), entropy, atol=1e-6, rtol=1e-5)


def test_accuracy_counts_signs() -> None:
    real, made = torch.tensor([1.0, 2.0, -1.0, 3.0]), torch.tensor([-1.0, 1.0])
    assert accuracy(real, made).item() == 0.5 * (3 / 4 + 1 / 2)


def test_the_generators_judge_is_left_without_gradients() -> None:
    io, _, _ = golden_logits()
    discriminator = golden_discriminator().train()
    discriminator(io["real"])
    made = io["fake"].clone().requires_grad_()
    logits = discriminator_logits(discriminator, made)
    assert_close(logits, io["logits_fake_train"], atol=1e-4, rtol=1e-3)
    generator_loss("hinge", logits).backward()  # type: ignore[no-untyped-call]
    assert made.grad is not None
    assert made.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in discriminator.parameters())
    statistics = discriminator.get_buffer("main.9.running_mean")
    assert_close(statistics, io["after.main.9.running_mean"], atol=1e-4, rtol=1e-3)


def test_balanced_losses_pull_equally_hard() -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    one, other = weight.square().sum(), 0.1 * weight.sum()
    balance = gradient_balance(one, other, weight)
    assert balance.item() == pytest.approx(10 / (0.1 * 2**0.5 + 1e-4))
    assert not balance.requires_grad
    (pull,) = torch.autograd.grad(balance * other, weight, retain_graph=True)
    assert pull.norm().item() == pytest.approx(10, rel=1e-3)
    assert gradient_balance(1e9 * weight.sum(), 0 * weight.sum(), weight) == HIGHEST_BALANCE
