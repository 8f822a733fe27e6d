"""Requests and answers of the OpenAI Images API, as far as this service can be asked for the same.

What only concerns OpenAI's own models is accepted and ignored. How an image is drawn can be said
under our own names too; clients send those as extra fields of the body.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from masc_core.images import ImageFormat
from server.schemas.generate import (
    EXAMPLE_B64,
    AskedPriority,
    ModelName,
    Provisional,
    SamplingFields,
)
from worker.jobs.job import MAX_IMAGES

MAX_PARTIAL_IMAGES = 3

EXAMPLE_BODY: Final[dict[str, Any]] = {"prompt": "ship", "n": 2, "seed": 3}
EXAMPLE_DRAWN: Final[dict[str, Any]] = {
    "created": 1769860800,
    "data": [{"b64_json": EXAMPLE_B64, "seed": 3}, {"b64_json": EXAMPLE_B64, "seed": 4}],
    "background": "opaque",
    "output_format": "png",
    "size": "32x32",
    "usage": {
        "input_tokens": 2,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 2},
        "output_tokens": 128,
        "total_tokens": 130,
    },
}

Ignored = Annotated[str | None, Field(description="Ignored.")]


class OpenAIFields(BaseModel):
    """What OpenAI's API has; the prompt is a class."""

    prompt: Annotated[str, Field(max_length=200, description="Name or id of a class.")]
    model: ModelName = None
    n: Annotated[int | None, Field(ge=1, le=MAX_IMAGES, description="How many; default 1.")] = None
    size: Annotated[
        str | None, Field(max_length=20, description="`auto`, or the size that the model has.")
    ] = None
    response_format: Annotated[str | None, Field(description="Only `b64_json`.")] = None
    output_format: Annotated[ImageFormat | None, Field(description="Default: png.")] = None
    output_compression: Annotated[
        Literal[100] | None, Field(description="Only 100: the quality is fixed.")
    ] = None
    background: Annotated[
        Literal["auto", "opaque"] | None, Field(description="Images are always opaque.")
    ] = None
    stream: Annotated[bool | None, Field(description="Answer with events.")] = None
    partial_images: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_PARTIAL_IMAGES,
            description="At most so many previews of an image in a stream: what is drawn so far.",
        ),
    ] = None
    moderation: Ignored = None
    quality: Ignored = None
    safety_identifier: Ignored = None
    style: Ignored = None
    user: Ignored = None

    @field_validator("response_format")
    @classmethod
    def _is_in_the_answer(cls, response_format: str | None) -> str | None:
        if response_format not in (None, "b64_json"):
            message = "must be b64_json: images come in the answer, there are no links to them"
            raise PydanticCustomError("response_format", message)
        return response_format


class OpenAIBody(SamplingFields, OpenAIFields):  # those of OpenAI come first, in errors too
    """Which images; the prompt is a class."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, json_schema_extra={"examples": [EXAMPLE_BODY]}
    )

    priority: AskedPriority = None


class TokenDetails(BaseModel):
    """Where the input tokens come from."""

    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """What the transformer read and wrote: one token for a class, one a position."""

    input_tokens: int
    input_tokens_details: TokenDetails
    output_tokens: int
    total_tokens: int


class OpenAIImage(BaseModel):
    """One image."""

    b64_json: str
    seed: Annotated[int, Field(description="The seed that alone makes this image again.")]


class OpenAIAnswer(BaseModel):
    """The images of one request."""

    created: Annotated[int, Field(description="Seconds since the epoch.")]
    data: list[OpenAIImage]
    background: Literal["opaque"] = "opaque"
    output_format: ImageFormat
    size: str
    usage: Usage


class OpenAIEvent(BaseModel):
    """What both events of a stream say; ``index`` is ours, for requests for several images."""

    type: str
    b64_json: str
    index: Annotated[int, Field(description="Which image of the request, from 0.")]
    created_at: Annotated[int, Field(description="Seconds since the epoch.")]
    size: str
    output_format: ImageFormat
    background: Literal["opaque"] = "opaque"
    quality: Literal["auto"] = "auto"


class PartialImageEvent(OpenAIEvent):
    """What is drawn of an image: its upper rows, or the whole where codes are a sequence."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    partial_image_index: int
    provisional: Provisional = None


class CompletedEvent(OpenAIEvent):
    """A finished image."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    seed: int
    usage: Usage


class OpenAIModel(BaseModel):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Field(description="Seconds since the epoch.")]
    owned_by: Literal["masc"] = "masc"


class OpenAIModelList(BaseModel):
    """The models of this service."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class OpenAIError(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: Annotated[str | None, Field(description="The field at fault.")] = None
    code: str | None = None


class OpenAIErrorAnswer(BaseModel):
    """An error, as clients of OpenAI's read it."""

    error: OpenAIError
