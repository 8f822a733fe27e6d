"""GigaTok's transformer: learned positions, and its schedules of guidance."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from masc_core.errors import ConfigError
from masc_core.generation.generate import generate
from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from masc_core.models.weights import load_transformer, save_model
from masc_core.prior import ClusterMap
from masc_core.sampling.cfg_schedule import CFGSchedule
from masc_core.sampling.in_cluster import CodeSampler
from masc_core.sampling.params import SamplingParams
from masc_core.sampling.sampler import apply_cfg, entropy_bits
from tests.golden_files import assert_close, load_golden, load_golden_json
from tests.golden_gpt import GOLDEN_CONFIG

CONFIG = dataclasses.replace(GOLDEN_CONFIG, positions="learned")
RUNS: dict[str, tuple[float, CFGSchedule]] = {
    "greedy_cfg1": (1.0, "constant"),
    "greedy_cfg2": (2.0, "constant"),
    "greedy_step2p5": (2.5, "step"),
    "greedy_linear3": (3.0, "linear"),
}


def golden_model() -> GPT:
    model = GPT(CONFIG)
    model.load_state_dict(load_golden("gigatok/ar1d_weights.safetensors"))
    return model.eval()


def test_logits_and_loss_are_upstreams() -> None:
    golden = load_golden("gigatok/ar1d_io.safetensors")
    with torch.inference_mode():
        logits = golden_model()(golden["labels"], golden["tokens"][:, :-1])
    assert_close(logits, golden["logits"], atol=2e-4, rtol=2e-4)
    loss = F.cross_entropy(logits.flatten(0, 1), golden["tokens"].flatten())
    assert_close(loss, golden["loss_mean_ce"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_greedy_runs_are_upstreams(name: str) -> None:
    golden = load_golden("gigatok/ar1d_io.safetensors")
    cfg_scale, schedule = RUNS[name]
    params_list = [
        SamplingParams(label, cfg_scale, seed=0, temperature=0, cfg_schedule=schedule)
        for label in golden["labels"].tolist()
    ]
    code_sampler = CodeSampler(ClusterMap.identity(CONFIG.vocab_size))
    made = generate(golden_model(), code_sampler, params_list)
    assert torch.equal(made.codes, golden[f"{name}.indices"].long())
    expected = entropy_bits(golden[f"{name}.step_logits"].flatten(0, 1)).view(4, 16)
    assert_close(made.entropies, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", RUNS)
def test_guided_logits_are_upstreams(name: str) -> None:
    golden = load_golden("gigatok/ar1d_io.safetensors")
    model, tokens = golden_model(), golden[f"{name}.indices"].long()[:, :-1]
    with torch.inference_mode():
        cond = model(golden["labels"], tokens)
        uncond = model(torch.full_like(golden["labels"], CONFIG.num_classes), tokens)
    cfg_scale, schedule = RUNS[name]
    params = SamplingParams(0, cfg_scale, seed=0, cfg_schedule=schedule)
    scales = torch.tensor(params.cfg_scales(16)).repeat(4)
    guided = apply_cfg(cond.flatten(0, 1), uncond.flatten(0, 1), scales).view_as(cond)
    assert_close(guided, golden[f"{name}.step_logits"], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("size", ["B", "L", "XL"])
@pytest.mark.parametrize(
    ("vocab_size", "counts"),
    [
        (4096, {"B": 92_211_456, "L": 318_008_320, "XL": 743_571_200}),
        (16384, {"B": 111_085_824, "L": 343_174_144, "XL": 775_028_480}),
    ],
)
def test_sizes_are_gigatoks(size: str, vocab_size: int, counts: dict[str, int]) -> None:
    named = GPTConfig.named(f"GPT-{size}", vocab_size=vocab_size)
    config = dataclasses.replace(named, positions="learned")
    assert config.num_parameters == counts[size]
    if (size, vocab_size) == ("B", 16384):
        with torch.device("meta"):
            state = GPT(config).state_dict()
        shapes = load_golden_json("shapes/gigatok_GPT-B_1d_v16384.json")
        assert {name: list(tensor.shape) for name, tensor in state.items()} == shapes


def test_a_saved_model_keeps_its_positions(tmp_path: Path) -> None:
    model = golden_model()
    save_model(tmp_path / "model.safetensors", model)
    loaded = load_transformer(tmp_path / "model.safetensors").eval()
    golden = load_golden("gigatok/ar1d_io.safetensors")
    with torch.inference_mode():
        for one in (loaded, loaded.double().float()):
            torch.testing.assert_close(
                one(golden["labels"], golden["tokens"][:, :-1]),
                model(golden["labels"], golden["tokens"][:, :-1]),
                atol=0,
                rtol=0,
            )


def test_other_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match="positions: must be rope2d or learned"):
        dataclasses.replace(CONFIG, positions="sinus")  # type: ignore[arg-type]
