from __future__ import annotations

import pytest
import torch

from masc_core.errors import ConfigError
from tests.golden_files import assert_close, load_golden
from training.losses.discriminator import PatchDiscriminator, num_patches


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
