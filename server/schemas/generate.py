"""What to generate, and the images in answer.

Requests are strict: no field is unknown, no number comes as a string or a boolean. A field of a
request that is absent or null takes its default.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from masc_core.images import ImageFormat
from server.schemas.image import EXAMPLE_B64, Image, ModelVersion, Stages
from server.schemas.sampling import (
    CfgScale,
    InClusterDecoding,
    ModelName,
    Seed,
    Temperature,
    TopK,
    TopP,
)

MAX_IMAGES = 16

EXAMPLE_REQUEST: dict[str, Any] = {"class_name": "ship", "cfg_scale": 3.0, "seed": 3}
EXAMPLE_ANSWER: dict[str, Any] = {
    "id": "0c3c8a4c2fd14b6ba4ff4a2f3c5e8a77",
    "model": {
        "name": "tiny",
        "version": "1",
        "weights_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    },
    "images": [
        {
            "b64": EXAMPLE_B64,
            "seed": 7,
            "format": "png",
            "entropy_bits": 7.31,
            "entropy_ratio": 0.73,
        }
    ],
    "timings": {
        "queue": 0.004,
        "prefill": 0.006,
        "decode": 1.412,
        "vq_decode": 0.051,
        "encode": 0.001,
        "total": 1.474,
    },
}


class ImagesBody(BaseModel):
    """Which images: one class, given by its id or by its name, and how they are drawn."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, json_schema_extra={"examples": [EXAMPLE_REQUEST]}
    )

    class_id: Annotated[
        int | None, Field(ge=0, description="Id of the class; either this or `class_name`.")
    ] = None
    class_name: Annotated[
        str | None,
        Field(max_length=200, description="Name of the class, in upper or lower case."),
    ] = None
    cfg_scale: CfgScale = None
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES, description="How many images.")] = 1
    seed: Seed = None
    temperature: Temperature = None
    top_k: TopK = None
    top_p: TopP = None
    decoding: InClusterDecoding = None
    format: Annotated[
        ImageFormat | None,
        Field(description="File format. Default: what `Accept` asks for, or else png."),
    ] = None
    model: ModelName = None


class GenerateBody(ImagesBody):
    """What to generate, and how to answer."""

    entropies: Annotated[
        bool, Field(description="Add the entropy of every position to JSON and events.")
    ] = False
    stream: Annotated[
        bool, Field(description="Answer with events: previews as they come, then the images.")
    ] = False


class GenerateAnswer(BaseModel):
    """The images of one request."""

    id: str
    model: ModelVersion
    images: list[Image]
    timings: Stages
