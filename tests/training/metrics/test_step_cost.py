from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from training.losses.transformer import NextCluster
from training.metrics.step_cost import _known_peak, flops_per_image, peak_flops


def test_against_what_torch_counts() -> None:
    config = GPTConfig(vocab_size=64, dim=32, n_layer=2, n_head=2, num_classes=3, block_size=16)
    objective = NextCluster(GPT(config))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(torch.zeros(5).long(), torch.zeros(5, 16).long())["loss"].backward()
    assert counter.get_total_flops() == 5 * flops_per_image(config)


def test_gpt_b_takes_six_operations_a_weight() -> None:
    config = GPTConfig.named("GPT-B")
    weights = config.num_parameters - (config.vocab_size + config.num_class_rows) * config.dim
    assert flops_per_image(config) / (6 * weights * 256) == pytest.approx(1.05, abs=0.01)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA GB200", 2500),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks_by_the_name_of_the_device(name: str, tflops: float | None) -> None:
    assert _known_peak(name) == (tflops and tflops * 1e12)


def test_a_processor_has_a_peak_when_it_is_given() -> None:
    assert peak_flops(torch.device("cpu"), 0.0) is None
    assert peak_flops(torch.device("cpu"), 1.5) == 1.5e12
