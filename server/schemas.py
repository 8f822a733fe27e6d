"""Bodies of requests and answers, as they are written in JSON.

Requests are strict: no field is unknown, no number comes as a string or a boolean. A field of a
request that is absent or null takes its default.
This module does not know the models; what depends on one is checked in `server.resolve`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from masc_core.images import ImageFormat
from masc_core.manifest import Decoding
from worker.jobs.job import MAX_SEED

MAX_IMAGES = 16
MAX_TEMPERATURE = 10.0

EXAMPLE_REQUEST: dict[str, Any] = {"class_name": "ship", "cfg_scale": 3.0, "seed": 3}
# One pixel.
EXAMPLE_IMAGE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4v2IFAARwAjcIwSCwAAAAAElFTkSuQmCC"
)
EXAMPLE_ANSWER: dict[str, Any] = {
    "id": "0c3c8a4c2fd14b6ba4ff4a2f3c5e8a77",
    "model": {
        "name": "tiny",
        "version": "1",
        "weights_sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    },
    "images": [
        {
            "b64": EXAMPLE_IMAGE,
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


class GenerateBody(BaseModel):
    """What to generate: one class, given by its id or by its name."""

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
    cfg_scale: Annotated[
        float | None,
        Field(
            ge=1.0,
            le=20.0,
            allow_inf_nan=False,
            description="Scale of the classifier-free guidance; 1 is none. Default: the model's.",
        ),
    ] = None
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES, description="How many images.")] = 1
    seed: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_SEED,
            description="Image `i` uses `seed + i`. Default: drawn, below 2^53, and reported.",
        ),
    ] = None
    temperature: Annotated[
        float | None,
        Field(
            gt=0,
            le=MAX_TEMPERATURE,
            allow_inf_nan=False,
            description="Divides the logits. Default: the model's.",
        ),
    ] = None
    top_k: Annotated[
        int | None, Field(ge=0, description="Draw among the `top_k` likeliest; 0 is all.")
    ] = None
    top_p: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            allow_inf_nan=False,
            description="Draw among the likeliest that make up this probability; 1 is all.",
        ),
    ] = None
    decoding: Annotated[
        Decoding | None,
        Field(description="How a cluster becomes one of its codes. Default: the model's."),
    ] = None
    format: Annotated[
        ImageFormat | None,
        Field(description="File format. Default: what `Accept` asks for, or else png."),
    ] = None
    model: Annotated[
        str | None, Field(max_length=200, description="Default: the server's default model.")
    ] = None
    entropies: Annotated[
        bool, Field(description="Add the entropy of every position to the JSON answer.")
    ] = False
    stream: Annotated[bool, Field(description="Only false: streaming is not offered yet.")] = False

    @field_validator("stream")
    @classmethod
    def _refuse_to_stream(cls, stream: bool) -> bool:  # noqa: FBT001 - pydantic's signature
        if stream:
            raise PydanticCustomError("stream", "must be false: streaming is not offered yet")
        return stream


class ModelVersion(BaseModel):
    """The weights that made an image."""

    name: str
    version: str
    weights_sha256: str


class Image(BaseModel):
    """One image of an answer."""

    b64: Annotated[str, Field(description="The file in Base64.")]
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


class Stages(BaseModel):
    """Seconds spent in each stage."""

    queue: float
    prefill: float
    decode: float
    vq_decode: float
    encode: float
    total: Annotated[float, Field(description="From submission to the encoded images.")]


class GenerateAnswer(BaseModel):
    """The images of one request."""

    id: str
    model: ModelVersion
    images: list[Image]
    timings: Stages


class Defaults(BaseModel):
    """What a request gets that does not say otherwise."""

    cfg_scale: float
    temperature: float
    top_k: int
    top_p: float
    decoding: Decoding


class ModelSummary(BaseModel):
    """One model of this service."""

    name: str
    version: str
    default: Annotated[bool, Field(description="Whether requests that name no model get it.")]
    ready: Annotated[bool, Field(description="Whether a worker can make images with it now.")]
    weights_sha256: str
    num_classes: int
    num_positions: Annotated[int, Field(description="Positions predicted for one image.")]
    num_codes: int
    num_clusters: int
    image_size: Annotated[int, Field(description="Pixels on each side.")]
    decodings: list[Decoding]
    defaults: Defaults
    metrics: Annotated[dict[str, Any], Field(description="What was measured when it was trained.")]


class ModelList(BaseModel):
    """The models of this service."""

    models: list[ModelSummary]


class ClassEntry(BaseModel):
    """One class of a model."""

    id: int
    name: str


class ClassList(BaseModel):
    """The classes of one model."""

    model: str
    version: str
    classes: list[ClassEntry]


class Health(BaseModel):
    """The process answers."""

    status: str


class Worker(BaseModel):
    """A worker that is ready, and the version it serves."""

    id: str
    version: str


class Readiness(BaseModel):
    """A worker for the default model is ready."""

    status: str
    model: str
    workers: list[Worker]


class Version(BaseModel):
    """Version of the software."""

    name: str
    version: str


class FieldProblem(BaseModel):
    """What is wrong with one field."""

    field: str
    message: str


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] | None = None
