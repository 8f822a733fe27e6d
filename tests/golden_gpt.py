"""The small transformer whose outputs upstream's code computed."""

from __future__ import annotations

from masc_core.models.gpt import GPT
from masc_core.models.gpt_config import GPTConfig
from tests.golden_files import load_golden

GOLDEN_CONFIG = GPTConfig(vocab_size=96, dim=64, n_layer=2, n_head=4, num_classes=10, block_size=16)


def golden_gpt() -> GPT:
    """In evaluation mode."""
    model = GPT(GOLDEN_CONFIG)
    model.load_state_dict(load_golden("gpt/weights.safetensors"))
    return model.eval()
