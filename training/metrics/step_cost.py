"""Floating-point operations of training a transformer, and how many a GPU can do.

Counted are the matrix products of forward and backward pass: ``6 P`` a position for the P weights
of blocks and head, and ``12 C L`` a position for attention in each block, as if no position were
masked. Not counted are embeddings (look-ups), norms, softmax, and what activation checkpointing
computes again. Model FLOPs utilisation (MFU) is their rate over the peak rate of the devices.

Chowdhery et al.: PaLM, appendix B. 2022.
"""

from __future__ import annotations

import torch

from masc_core.models.gpt_config import GPTConfig

# Dense bfloat16 products with float32 sums, TFLOP/s, from the makers' data sheets. The first name
# that is part of the device's counts.
PEAK_TFLOPS = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "GB200": 2500.0,
    "B200": 2250.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A10G": 70.0,
    "RTX 4090": 165.0,
}


def flops_per_image(config: GPTConfig) -> float:
    """Operations of one training step for one image."""
    length, dim = config.block_size, config.dim
    block = 4 * dim * dim + 3 * dim * config.ffn_dim
    weights = config.n_layer * block + dim * config.vocab_size
    attention = 12 * dim * length * config.n_layer
    return float(length * (6 * weights + attention))


def peak_flops(device: torch.device, tflops: float) -> float | None:
    """Operations a second that the device can do; None where that is not known.

    Parameters
    ----------
    device : of this rank
    tflops : what the user says; 0 looks at the table
    """
    if tflops:
        return tflops * 1e12
    if device.type != "cuda":
        return None
    return _known_peak(torch.cuda.get_device_name(device))


def _known_peak(name: str) -> float | None:
    return next((peak * 1e12 for part, peak in PEAK_TFLOPS.items() if part in name), None)
