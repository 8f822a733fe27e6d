"""Images of an answer, and what is told of how they were made."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BaseModel, Field

from masc_core.images import ImageFormat

# One pixel.
EXAMPLE_B64: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4v2IFAARwAjcIwSCwAAAAAElFTkSuQmCC"
)


class ModelVersion(BaseModel):
    """The weights that made an image."""

    name: str
    version: str
    weights_sha256: str


class ImageFacts(BaseModel):
    """What is known of one image, besides its pixels."""

    seed: Annotated[int, Field(description="The seed that alone makes this image again.")]
    format: ImageFormat
    entropy_bits: Annotated[
        float, Field(description="Mean entropy of the predictions, bits per position.")
    ]
    entropy_ratio: Annotated[
        float, Field(description="The same as a share of the largest possible, log2 of clusters.")
    ]
    entropies: Annotated[
        list[float] | None, Field(description="Bits of each position, if asked for.")
    ] = None


class Image(ImageFacts):
    """One image of an answer."""

    b64: Annotated[str, Field(description="The file in Base64.")]


class Stages(BaseModel):
    """Seconds spent in each stage."""

    queue: float
    prefill: float
    decode: float
    vq_decode: float
    encode: float
    total: Annotated[float, Field(description="From submission to the encoded images.")]
