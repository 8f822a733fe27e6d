from __future__ import annotations

import pytest
import torch
from torch import Tensor

from masc_core.models.vq import VQConfig, VQModel, pixels_to_float
from training.losses.adversarial import PatchDiscriminator, generator_loss
from training.losses.lpips import Lpips
from training.losses.tokenizer import Adversary, DiscriminatorLoss, TokenizerLoss, WeightedDistance

START = 4


def tiny_model() -> VQModel:
    torch.manual_seed(0)
    config = VQConfig(num_codes=16, ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=32)
    return VQModel(config, entropy_ratio=0.1).train()


def tiny_adversary(**changes: object) -> Adversary:
    torch.manual_seed(1)
    values: dict[str, object] = {"kind": "hinge", "weight": 0.5, "start": START, "adaptive": False}
    return Adversary(PatchDiscriminator(8, 2).train(), **values | changes)  # type: ignore[arg-type]


def drawn_pixels() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8, generator=generator)


def logits_of(adversary: Adversary, images: Tensor) -> Tensor:
    logits: Tensor = adversary.discriminator(images)
    return logits


def gradients(module: torch.nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def test_the_loss_is_the_sum_of_its_weighted_parts() -> None:
    model, adversary, lpips = tiny_model(), tiny_adversary(), Lpips()
    objective = TokenizerLoss(
        model, {"lpips": WeightedDistance(lpips, 0.7)}, adversary, finished_steps=START
    )
    values = objective(drawn_pixels())
    images = pixels_to_float(drawn_pixels())
    fake = objective.images
    expected = {
        "mse": (fake - images).square().mean(),
        "lpips": lpips(fake, images).mean(),
        "adversarial": 0.5 * generator_loss("hinge", logits_of(adversary, fake)),
    }
    for name, value in expected.items():
        assert values[name].item() == pytest.approx(value.item(), rel=1e-5)
    assert values.keys() == {"loss", *expected, "codebook", "commitment", "entropy"}
    parts = {name: value for name, value in values.items() if name != "loss"}
    parts["lpips"] = 0.7 * parts["lpips"]
    assert values["loss"].item() == pytest.approx(sum(parts.values()).item(), rel=1e-5)
    assert not any(value.requires_grad for value in parts.values())


def test_the_adversary_takes_part_from_its_step_on() -> None:
    objective = TokenizerLoss(tiny_model(), adversary=tiny_adversary())
    contests = []
    for finished in range(6):
        objective.finished_steps = finished
        assert objective.is_adversarial == ("adversarial" in objective(drawn_pixels()))
        contests.append(objective.is_adversarial)
    assert contests == [False, False, False, True, True, True]  # steps 1 to 6
    assert not TokenizerLoss(tiny_model(), finished_steps=100).is_adversarial


def test_the_discriminator_waits_for_its_step() -> None:
    adversary = tiny_adversary()
    objective = TokenizerLoss(tiny_model(), adversary=adversary)
    other = DiscriminatorLoss(adversary, objective)
    optimizer = torch.optim.Adam(other.model.parameters())
    before = {name: value.clone() for name, value in other.model.state_dict().items()}
    for finished in range(START):
        assert all(torch.equal(before[k], v) for k, v in other.model.state_dict().items())
        objective.finished_steps = finished
        objective(drawn_pixels())
        optimizer.zero_grad()
        other(drawn_pixels())["loss"].backward()
        optimizer.step()
    weight = "main.0.weight"
    assert not torch.equal(before[weight], other.model.state_dict()[weight])


@pytest.mark.parametrize("adaptive", [False, True])
def test_neither_side_moves_the_other(adaptive: bool) -> None:
    model, adversary = tiny_model(), tiny_adversary(adaptive=adaptive)
    objective = TokenizerLoss(model, adversary=adversary, finished_steps=START)
    objective(drawn_pixels())["loss"].backward()
    assert gradients(adversary.discriminator) == [None] * len(gradients(adversary.discriminator))
    held = gradients(model)
    assert all(gradient is not None for gradient in held)
    DiscriminatorLoss(adversary, objective)(drawn_pixels())["loss"].backward()
    for before, after in zip(held, gradients(model), strict=True):
        assert before is not None
        assert after is not None
        assert torch.equal(before, after)
    assert all(gradient is not None for gradient in gradients(adversary.discriminator))


def test_the_networks_are_parts_of_their_own_objective_alone() -> None:
    adversary = tiny_adversary()
    objective = TokenizerLoss(tiny_model(), adversary=adversary)
    own = {id(p) for p in objective.parameters()}
    others = {id(p) for p in DiscriminatorLoss(adversary, objective).parameters()}
    assert others == {id(p) for p in adversary.discriminator.parameters()}
    assert not own & others


def test_an_adaptive_weight_balances_the_gradients_at_the_last_layer() -> None:
    model, adversary = tiny_model(), tiny_adversary(adaptive=True, weight=1.0)
    objective = TokenizerLoss(model, adversary=adversary, finished_steps=START)
    pulls = []
    for finished in (0, START):
        objective.finished_steps = finished
        model.zero_grad()
        objective(drawn_pixels())["loss"].backward()
        gradient = model.decoder.conv_out.weight.grad
        assert gradient is not None
        pulls.append(gradient.clone())
    alone, together = pulls
    assert (together - alone).norm().item() == pytest.approx(alone.norm().item(), rel=0.02)


def test_the_discriminator_sees_the_reconstruction_of_the_batch() -> None:
    adversary = tiny_adversary(kind="non-saturating", weight=0.25)
    objective = TokenizerLoss(tiny_model(), adversary=adversary, finished_steps=START)
    objective(drawn_pixels())
    values = DiscriminatorLoss(adversary, objective)(drawn_pixels())
    real = logits_of(adversary, pixels_to_float(drawn_pixels()))
    fake = logits_of(adversary, objective.images)
    expected = -0.5 * (real.sigmoid().log().mean() + (-fake).sigmoid().log().mean())
    assert values["discriminator"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert values["loss"].item() == pytest.approx(0.25 * expected.item(), rel=1e-5)
    right = (real > 0).sum() + (fake < 0).sum()
    assert values["discriminator_accuracy"].item() == right.item() / (2 * real.numel())


def test_losses_in_bfloat16_are_summed_in_full_precision() -> None:
    adversary = tiny_adversary(adaptive=True)
    objective = TokenizerLoss(
        tiny_model(), {"lpips": WeightedDistance(Lpips(), 1.0)}, adversary, finished_steps=START
    )
    other = DiscriminatorLoss(adversary, objective)
    exact = objective(drawn_pixels()) | {"rival": other(drawn_pixels())["loss"]}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = objective(drawn_pixels()) | {"rival": other(drawn_pixels())["loss"]}
    assert {values[name].dtype for name in ("loss", "mse", "lpips", "rival")} == {torch.float32}
    assert values["loss"].item() == pytest.approx(exact["loss"].item(), rel=0.05)
    (values["loss"] + values["rival"]).backward()
    for gradient in (*gradients(objective.model), *gradients(other.model)):
        assert gradient is not None
        assert gradient.isfinite().all()
