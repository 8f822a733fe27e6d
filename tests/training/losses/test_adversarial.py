from __future__ import annotations

import pytest
import torch
from torch import Tensor

from masc_core.errors import ConfigError
from tests.golden_files import assert_close, load_golden
from training.losses.adversarial import (
    MAX_BALANCE,
    PatchDiscriminator,
    accuracy,
    discriminator_logits,
    discriminator_loss,
    generator_loss,
    gradient_balance,
    num_patches,
)


def golden_logits() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    io = load_golden("vq_gan/io.safetensors")
    return io, io["logits_real_train"], io["logits_fake_train"]


def test_hinge_losses_reproduce_upstream() -> None:
    io, real, fake = golden_logits()
    loss = discriminator_loss("hinge", real, fake)
    assert_close(loss, io["hinge_d_loss"], atol=1e-5, rtol=1e-4)
    assert_close(generator_loss("hinge", fake), io["hinge_gen_loss"], atol=1e-5, rtol=1e-4)


def test_non_saturating_losses() -> None:
    io, real, fake = golden_logits()
    # What upstream calls vanilla; its "non-saturating" losses are not these.
    loss = discriminator_loss("non-saturating", real, fake)
    assert_close(loss, io["vanilla_d_loss"], atol=1e-5, rtol=1e-4)
    entropy = torch.nn.functional.binary_cross_entropy(fake.sigmoid(), torch.ones_like(fake))
    assert_close(generator_loss("non-saturating", fake), entropy, atol=1e-6, rtol=1e-5)


def test_accuracy_counts_signs() -> None:
    real, fake = torch.tensor([1.0, 2.0, -1.0, 3.0]), torch.tensor([-1.0, 1.0])
    assert accuracy(real, fake).item() == 0.5 * (3 / 4 + 1 / 2)


def test_the_generators_judge_is_left_without_gradients() -> None:
    io, _, _ = golden_logits()
    discriminator = golden_discriminator().train()
    discriminator(io["real"])
    fake = io["fake"].clone().requires_grad_()
    logits = discriminator_logits(discriminator, fake)
    assert_close(logits, io["logits_fake_train"], atol=1e-4, rtol=1e-3)
    generator_loss("hinge", logits).backward()  # type: ignore[no-untyped-call]
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0
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
    assert gradient_balance(1e9 * weight.sum(), 0 * weight.sum(), weight) == MAX_BALANCE


def golden_discriminator() -> PatchDiscriminator:
    discriminator = PatchDiscriminator(channels=8)
    discriminator.load_state_dict(load_golden("vq_gan/disc_weights.safetensors"))
    return discriminator


def test_reproduces_upstream_in_training_and_evaluation() -> None:
    io = load_golden("vq_gan/io.safetensors")
    discriminator = golden_discriminator().train()
    for kind in ("real", "fake"):
        logits = discriminator(io[kind])
        assert_close(logits, io[f"logits_{kind}_train"], atol=1e-4, rtol=1e-3)
    state = discriminator.state_dict()
    statistics = {name: io[name] for name in io if name.startswith("after.")}
    assert len(statistics) == 6
    for name, expected in statistics.items():
        assert_close(state[name.removeprefix("after.")], expected, atol=1e-4, rtol=1e-3)
    logits = discriminator.eval()(io["real"])
    assert_close(logits, io["logits_real_eval_after"], atol=1e-4, rtol=1e-3)


def test_the_sizes_of_the_recipe() -> None:
    with torch.device("meta"):
        state = PatchDiscriminator().state_dict()
    weights = {name: tuple(t.shape) for name, t in state.items() if name.endswith("weight")}
    assert weights == {
        "main.0.weight": (64, 3, 4, 4),
        "main.2.weight": (128, 64, 4, 4),
        "main.3.weight": (128,),
        "main.5.weight": (256, 128, 4, 4),
        "main.6.weight": (256,),
        "main.8.weight": (512, 256, 4, 4),
        "main.9.weight": (512,),
        "main.11.weight": (1, 512, 4, 4),
    }
    with torch.device("meta"):
        deep = PatchDiscriminator(64, 5)
    assert deep.main[-1].weight.shape == (1, 512, 4, 4)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    state = PatchDiscriminator().state_dict()
    assert state["main.8.weight"].std().item() == pytest.approx(0.02, rel=0.01)
    assert state["main.9.weight"].mean().item() == pytest.approx(1.0, abs=0.005)
    assert state["main.9.weight"].std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize(("size", "layers"), [(256, 3), (32, 3), (24, 3), (16, 2), (11, 1)])
def test_patches_are_counted_as_they_come_out(size: int, layers: int) -> None:
    discriminator = PatchDiscriminator(8, layers)
    logits = discriminator(torch.zeros(2, 3, size, size))
    assert logits.shape[2:] == (num_patches(size, layers),) * 2


def test_an_image_too_small_for_the_layers() -> None:
    with pytest.raises(ConfigError, match="disc_layers: 3 strided layers leave nothing of 16"):
        num_patches(16, 3)
