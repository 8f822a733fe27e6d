"""The class-conditional weights that LlamaGen's authors released, by the names that we give them.

They lie in ``FoundationVision/LlamaGen`` on the Hugging Face hub, under the file names that
LlamaGen's README links to. Of the sizes XL to 3B there are none for 256 pixels, and no transformer
is over the codes of VQ-8.
"""

from __future__ import annotations

from dataclasses import dataclass

REPOSITORY = "hf://FoundationVision/LlamaGen"
VQ_16, VQ_8 = f"{REPOSITORY}/vq_ds16_c2i.pt", f"{REPOSITORY}/vq_ds8_c2i.pt"


@dataclass(frozen=True, slots=True)
class Released:
    """Where weights lie; a tokenizer alone has no transformer, and works at any size."""

    tokenizer: str
    gpt: str | None = None
    image_size: int | None = None


def _transformer(size: str, pixels: int) -> Released:
    return Released(VQ_16, f"{REPOSITORY}/c2i_{size}_{pixels}.pt", pixels)


RELEASED = {
    "llamagen-b-256": _transformer("B", 256),
    "llamagen-b-384": _transformer("B", 384),
    "llamagen-l-256": _transformer("L", 256),
    "llamagen-l-384": _transformer("L", 384),
    "llamagen-xl-384": _transformer("XL", 384),
    "llamagen-xxl-384": _transformer("XXL", 384),
    "llamagen-3b-384": _transformer("3B", 384),
    "vq-16": Released(VQ_16),
    "vq-8": Released(VQ_8),
}
