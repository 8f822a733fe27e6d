"""How an image is drawn: the fields that every kind of request has, under the same names."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from masc_core.bundle.manifest import Decoding
from worker.jobs.job import MAX_SEED

MAX_TEMPERATURE = 10.0

CfgScale = Annotated[
    float | None,
    Field(
        ge=1.0,
        le=20.0,
        allow_inf_nan=False,
        description="Scale of the classifier-free guidance; 1 is none. Default: the model's.",
    ),
]
Seed = Annotated[
    int | None,
    Field(
        ge=0,
        le=MAX_SEED,
        description="Image `i` uses `seed + i`. Default: drawn, below 2^53, and reported.",
    ),
]
Temperature = Annotated[
    float | None,
    Field(
        gt=0,
        le=MAX_TEMPERATURE,
        allow_inf_nan=False,
        description="Divides the logits of clusters, not a refiner's. Default: the model's.",
    ),
]
TopK = Annotated[int | None, Field(ge=0, description="Draw among the `top_k` likeliest; 0 is all.")]
TopP = Annotated[
    float | None,
    Field(
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Draw among the likeliest that make up this probability; 1 is all.",
    ),
]
InClusterDecoding = Annotated[
    Decoding | None,
    Field(
        description="How a cluster becomes one of its codes: all alike, as often as in training "
        "data, or by the model's refiner. Default: the model's."
    ),
]
ModelName = Annotated[
    str | None, Field(max_length=200, description="Default: the server's default model.")
]
