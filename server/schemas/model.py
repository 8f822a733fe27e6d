"""The models of the service and their classes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from masc_core.bundle.manifest import Decoding


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
    has_thumbnails: Annotated[bool, Field(description="Whether its classes have thumbnails.")]
    has_codebook: Annotated[bool, Field(description="Whether its codebook can be browsed.")]
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
