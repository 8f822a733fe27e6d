"""How an image is drawn: the fields that every kind of request has, under the same names."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from masc_core.bundle.manifest import CfgScale, Share, Temperature, TopK, TopP
from masc_core.images import ImageFormat
from masc_core.sampling.cfg_schedule import CFGSchedule
from masc_core.sampling.params import Decoding
from worker.jobs.job import MAX_IMAGES, MAX_SEED
from worker.jobs.priority import Priority

AskedPriority = Annotated[
    Priority | None,
    Field(
        description="Whether somebody waits for the images: `interactive` jobs go before those of "
        "`batch`, which still get one row in seventeen. Default: `batch` for `/jobs`, or what the "
        "key may ask for, else `interactive`."
    ),
]
ModelName = Annotated[
    str | None, Field(max_length=200, description="Default: the server's default model.")
]
Provisional = Annotated[
    bool | None,
    Field(
        description="True where other codes of the same clusters stand for those that a completer "
        "draws at the end: the final picture differs in its details."
    ),
]


# One pixel.
EXAMPLE_B64: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4v2IFAARwAjcIwSCwAAAAAElFTkSuQmCC"
)


class ModelVersion(BaseModel):
    """The weights that made an image."""

    name: str
    version: str
    weights_sha256: str


class ImageMetadata(BaseModel):
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
    cluster_entropy_bits: Annotated[
        float | None,
        Field(description="As `entropy_bits`, of the clusters of the model's partition, if any."),
    ] = None
    cluster_entropy_ratio: float | None = None
    cluster_entropies: list[float] | None = None


class Image(ImageMetadata):
    """One image of an answer."""

    b64: Annotated[str, Field(description="The file in Base64.")]


class Stages(BaseModel):
    """Seconds spent in each stage."""

    queue: float
    prefill: float
    decode: float
    complete: Annotated[
        float | None, Field(description="Where the codes come from the model's completer.")
    ] = None
    vq_decode: float
    encode: float
    total: Annotated[float, Field(description="From submission to the encoded images.")]


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


class SamplingFields(BaseModel):
    """How an image is drawn, as a request says it; what it leaves out is the model's default."""

    cfg_scale: CfgScale | None = Field(
        None, description="Scale of the classifier-free guidance; 1 is none. Default: the model's."
    )
    cfg_schedule: CFGSchedule | None = Field(
        None,
        description="How the scale goes over an image's positions: the same for all, from "
        "`cfg_start` on (`step`, or `rectangular`), rising (`linear`), falling (`linear_re`), or "
        "first one and then the other (`triangular`). Default: the model's.",
    )
    cfg_start: Share | None = Field(
        None, description="Share of the positions before `step` guides. Default: the model's."
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="Image `i` uses `seed + i`. Default: drawn, below 2^53, and reported.",
    )
    temperature: Temperature | None = Field(
        None, description="Divides the logits of clusters, not a refiner's. Default: the model's."
    )
    top_k: TopK | None = Field(None, description="Draw among the `top_k` likeliest; 0 is all.")
    top_p: TopP | None = Field(
        None, description="Draw among the likeliest that make up this probability; 1 is all."
    )
    cluster_top_k: TopK | None = Field(
        None,
        description="Draw among the codes of so many of the likeliest clusters of the model's "
        "partition; 0 is all. Comes before `top_k` and `top_p`.",
    )
    cluster_top_p: TopP | None = Field(
        None,
        description="Draw among the codes of the likeliest clusters that make up this probability; "
        "1 is all.",
    )
    decoding: Decoding | None = Field(
        None,
        description="How a cluster becomes one of its codes: all alike, as often as in training "
        "data, by the model's refiner one after another, or by its completer all at the end. "
        "Default: the model's.",
    )
    code_temperature: Temperature | None = Field(
        None,
        description="Divides a completer's scores; for the decoding `complete` alone, as what "
        "follows. Default: the model's.",
    )
    code_top_k: TopK | None = Field(
        None, description="Draw among the likeliest codes of a cluster; 0 is all."
    )
    code_cfg_scale: CfgScale | None = Field(
        None, description="Scale of the completer's own guidance; 1 is none. Default: the model's."
    )


class SamplingValues(BaseModel):
    """The same with nothing left open."""

    cfg_scale: float
    cfg_schedule: CFGSchedule
    cfg_start: float
    temperature: float
    top_k: int
    top_p: float
    cluster_top_k: int
    cluster_top_p: float
    decoding: Decoding
    code_temperature: float
    code_top_k: int
    code_cfg_scale: float


class ClassFields(BaseModel):
    """A class, given by its id or by its name, and how many images of it."""

    class_id: Annotated[
        int | None, Field(ge=0, description="Id of the class; either this or `class_name`.")
    ] = None
    class_name: Annotated[
        str | None,
        Field(max_length=200, description="Name of the class, in upper or lower case."),
    ] = None
    num_images: Annotated[int, Field(ge=1, le=MAX_IMAGES, description="How many images.")] = 1


class ImagesBody(SamplingFields, ClassFields):  # those of a class come first, in errors too
    """Which images: one class, given by its id or by its name, and how they are drawn."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, json_schema_extra={"examples": [EXAMPLE_REQUEST]}
    )

    format: Annotated[
        ImageFormat | None,
        Field(description="File format. Default: what `Accept` asks for, or else png."),
    ] = None
    model: ModelName = None
    priority: AskedPriority = None


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
