"""Which models there are, and which classes they know."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.responses import Response

from masc_core.bundle.manifest import Manifest, TokenizerKind
from masc_core.errors import ArtifactError
from masc_core.sampling.params import Decoding
from server.codebook_view.cache import has_codebook
from server.openapi import problems
from server.schemas.generate import SamplingValues
from server.state import AppState, State

logger = logging.getLogger(__name__)
router = APIRouter(tags=["models"])


class Defaults(SamplingValues):
    """What a request gets that does not say otherwise."""


class ModelSummary(BaseModel):
    """One model of this service."""

    name: str
    version: str
    default: Annotated[bool, Field(description="Whether requests that name no model get it.")]
    ready: Annotated[bool, Field(description="Whether a worker can make images with it now.")]
    workers: Annotated[int, Field(description="How many can; 0 if it is only stored.")]
    weights_sha256: str
    num_classes: int
    num_positions: Annotated[int, Field(description="Positions predicted for one image.")]
    tokenizer: Annotated[
        TokenizerKind, Field(description="What the codes are: `vq` a grid, `gigatok1d` a sequence.")
    ]
    latent_shape: Annotated[
        tuple[int, int], Field(description="Rows and columns of an image's codes.")
    ]
    num_codes: int
    num_clusters: int
    partitions: Annotated[
        list[int],
        Field(description="Clusters of its partitions; the first is filtered by `cluster_top_k`."),
    ]
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


@router.get("/models", summary="The models of this service")
async def models(state: State) -> ModelList:
    """Every model, in the version that workers serve, or else in its active one.

    One whose files are damaged is left out.
    """
    served = await state.served()

    def summaries() -> list[ModelSummary]:
        return [
            summary(state, manifest, workers=len(served.get(manifest.name, ())))
            for manifest in _manifests(state, served)
        ]

    return ModelList(models=await asyncio.to_thread(summaries))  # they may have to be fetched


@router.get(
    "/models/{name}/classes",
    summary="The classes of a model",
    response_model=ClassList,
    responses=problems("unknown-model"),
)
async def classes(name: str, state: State) -> Response:
    """Ids and names of the classes, in the order of their ids."""
    manifest = await state.manifest(name)
    entries = [{"id": i, "name": class_name} for i, class_name in enumerate(manifest.class_names)]
    answer = {"model": manifest.name, "version": manifest.version, "classes": entries}
    # As it is: to check each of 65,536 entries again takes a second.
    return Response(to_json(answer), media_type="application/json")


def summary(state: AppState, manifest: Manifest, *, workers: int) -> ModelSummary:
    """Shorten a manifest to what a client needs."""
    return ModelSummary(
        name=manifest.name,
        version=manifest.version,
        default=manifest.name == state.default_model,
        ready=workers > 0,
        workers=workers,
        weights_sha256=manifest.weights_sha256,
        num_classes=len(manifest.class_names),
        num_positions=manifest.num_positions,
        tokenizer=manifest.tokenizer,
        latent_shape=manifest.latent_shape,
        num_codes=manifest.num_codes,
        num_clusters=manifest.num_clusters,
        partitions=list(manifest.partitions),
        image_size=manifest.image_size,
        decodings=list(manifest.decodings),
        defaults=Defaults(**manifest.defaults.model_dump()),
        has_thumbnails=state.codebook_cache.has_thumbnails(manifest),
        has_codebook=has_codebook(manifest),
        metrics=manifest.metrics,
    )


async def served_manifests(state: AppState) -> list[Manifest]:
    """Every model, as `models` lists them."""
    served = await state.served()
    return await asyncio.to_thread(lambda: list(_manifests(state, served)))


def _manifests(state: AppState, served: Mapping[str, Sequence[str]]) -> Iterator[Manifest]:
    try:
        active = state.registry.models()
    except ArtifactError as error:  # what workers serve is not concerned
        logger.warning("%s", error)
        active = ()
    for name in sorted({*active, *served}):
        try:
            yield state.served_manifest(name, served)
        except ArtifactError as error:
            logger.warning("model %s is left out: %s", name, error)
