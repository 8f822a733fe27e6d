"""How much memory of a GPU a training step of the transformer takes, estimated.

A parameter takes 18 bytes: weight, gradient and AdamW's two moments in float32, and a copy in
bfloat16. An image takes what the backward pass needs of the forward pass; with bfloat16 autocast
that is, of each position,

    38 C + 8 F + 4 H + 8    bytes in a block that runs as it is written: the residual and the norms
                            in float32, factors of products and SwiGLU in bfloat16
    4 C                     in a block that keeps its input alone
    16 C + 4 K              around the blocks: embedding, norm, and a head's logits and gradient

Compiled blocks keep about three quarters of that, 10.9 instead of 15.0 MiB an image in GPT-L, for
the compiler computes the cheap parts again. Not counted are the CUDA context, the workspaces of
products (1 to 2 GB together), and fragments.

Legend: C width, F width of the feed-forward block, H heads, K clusters.
"""

from __future__ import annotations

from masc_core.models.gpt_config import GPTConfig

PARAMETER_BYTES = 18


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
    """Bytes that a block keeps of a position."""
    return 38 * config.dim + 8 * config.ffn_dim + 4 * config.n_head + 8
