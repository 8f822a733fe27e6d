"""What training a transformer costs: floating-point operations, and the memory of a step.

Operations counted are the matrix products of forward and backward pass: ``6 P`` per position for
the P weights of blocks and head, and ``12 C L`` per position for attention in each block, as if no
position were masked. Not counted are embeddings (look-ups), norms, softmax, and what activation
checkpointing computes again. Model FLOPs utilisation (MFU) is their rate over the peak rate of the
devices (Chowdhery et al.: PaLM, appendix B. 2022).

Memory is an estimate. A parameter takes 18 bytes: weight, gradient and AdamW's two moments in
float32, and a copy in bfloat16. An image takes what the backward pass needs of the forward pass;
with bfloat16 autocast that is, of each position,

    38 C + 8 F + 4 H + 8    bytes in a block that runs as it is written: the residual and the norms
                            in float32, factors of products and SwiGLU in bfloat16
    4 C                     in a block that keeps its input alone
    16 C + 4 K              around the blocks: embedding, norm, and a head's logits and gradient

Compiled blocks keep about three quarters of that, 10.9 instead of 15.0 MiB an image in GPT-L, for
the compiler computes the cheap parts again. Not counted are the CUDA context, the workspaces of
products (1 to 2 GB together), and fragments.

Legend: L positions, C width, F width of the feed-forward block, H heads, K clusters.
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
PARAMETER_BYTES = 18


def flops_per_image(config: GPTConfig) -> float:
    """Operations of one training step for one image."""
    length, dim = config.block_size, config.dim
    block = 4 * dim * dim + 3 * dim * config.ffn_dim
    weights = config.n_layer * block + dim * config.vocab_size
    attention = 12 * dim * length * config.n_layer
    return float(length * (6 * weights + attention))


def peak_flops(device: torch.device, tflops: float) -> float | None:
    """Operations per second that the device can do; None where that is not known.

    Parameters
    ----------
    device : of this rank
    tflops : what the user says; 0 looks at the table
    """
    if tflops:
        return tflops * 1e12
    if device.type != "cuda":
        return None
    return known_peak(torch.cuda.get_device_name(device))


def known_peak(name: str) -> float | None:
    """Operations per second of a device of that name, by the table."""
    return next((peak * 1e12 for part, peak in PEAK_TFLOPS.items() if part in name), None)


def step_bytes(
    config: GPTConfig, images: int, *, recomputed: bool = False, num_shards: int = 1
) -> int:
    """Bytes that a step takes at its peak.

    Parameters
    ----------
    config : of the model
    images : that go through it together
    recomputed : whether blocks keep their inputs alone
    num_shards : ranks that share the parameters (FSDP)
    """
    state = PARAMETER_BYTES * config.num_parameters // num_shards
    return state + images * image_bytes(config, recomputed=recomputed)


def image_bytes(config: GPTConfig, *, recomputed: bool = False) -> int:
    """Bytes that an image's activations take."""
    block = block_bytes(config)
    blocks = config.n_layer * block
    if recomputed:
        blocks = config.n_layer * 4 * config.dim + block  # one at a time is computed again
    return config.block_size * (blocks + 16 * config.dim + 4 * config.vocab_size)


def block_bytes(config: GPTConfig) -> int:
    """Bytes that a block keeps per position."""
    return 38 * config.dim + 8 * config.ffn_dim + 4 * config.n_head + 8
