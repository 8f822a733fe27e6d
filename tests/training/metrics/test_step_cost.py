from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from training.losses.transformer import NextClusterLoss
from training.metrics.step_cost import (
    block_bytes,
    flops_per_image,
    image_bytes,
    known_peak,
    peak_flops,
    step_bytes,
)

CONFIG = GPTConfig(64, dim=96, n_layer=1, n_head=3, num_classes=5, block_size=64)


def test_operations_against_what_torch_counts() -> None:
    config = GPTConfig(vocab_size=64, dim=32, n_layer=2, n_head=2, num_classes=3, block_size=16)
    objective = NextClusterLoss(GPT(config))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(torch.zeros(5).long(), torch.zeros(5, 16).long())["loss"].backward()
    assert counter.get_total_flops() == 5 * flops_per_image(config)


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
    assert known_peak(name) == (tflops and tflops * 1e12)


def test_a_processor_has_a_peak_when_it_is_given() -> None:
    assert peak_flops(torch.device("cpu"), 0.0) is None
    assert peak_flops(torch.device("cpu"), 1.5) == 1.5e12


def kept_bytes(config: GPTConfig, images: int) -> int:
    """Of the tensors that a backward pass in bfloat16 waits for, each storage once."""
    torch.manual_seed(0)
    objective = NextClusterLoss(GPT(config).train())
    tokens = torch.zeros(images, config.block_size, dtype=torch.int64)
    storages: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return value

    watched = torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value)
    with watched, torch.autocast("cpu", torch.bfloat16):
        losses = objective(tokens[:, 0], tokens)  # alive, so that no storage comes twice
    assert losses["loss"].requires_grad
    return sum(storages.values())


@pytest.mark.parametrize(("dim", "n_head"), [(96, 3), (160, 5)])
def test_a_block_keeps_what_is_estimated(dim: int, n_head: int) -> None:
    config = replace(CONFIG, dim=dim, n_head=n_head)
    by_depth = [
        kept_bytes(replace(config, n_layer=depth), 3)
        - kept_bytes(replace(config, n_layer=depth), 2)
        for depth in (1, 2)
    ]
    assert by_depth[1] - by_depth[0] == config.block_size * block_bytes(config)


def test_an_image_keeps_about_what_is_estimated() -> None:
    config = replace(CONFIG, n_layer=4, vocab_size=1024)
    kept = kept_bytes(config, 3) - kept_bytes(config, 2)
    assert image_bytes(config) == pytest.approx(kept, rel=0.05)


def test_who_computes_again_or_shares_needs_less() -> None:
    whole = step_bytes(GPTConfig.named("GPT-L"), 64)
    assert step_bytes(GPTConfig.named("GPT-L"), 64, recomputed=True) < whole / 2
    state = step_bytes(GPTConfig.named("GPT-L"), 0)
    assert step_bytes(GPTConfig.named("GPT-L"), 0, num_shards=8) == state // 8
