"""What people see of a model: thumbnails of its classes, and its codebook, for the page.

Legend: V codes, K clusters.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from masc_core.bundle.codebook_view import patch_columns
from masc_core.bundle.manifest import Manifest
from masc_core.errors import UnknownClassError
from server.answers.images import BINARY, cached_response
from server.codebook_view.cache import CodebookView
from server.codebook_view.codebook import (
    BranchDetail,
    ClusterDetail,
    ClusterPage,
    CodebookSummary,
    PatchSheet,
    SizeCount,
    Sort,
)
from server.openapi import Responses, problems
from server.state import AppState, State

router = APIRouter(prefix="/models/{name}", tags=["models"])

MAX_CLUSTERS = 200  # a page
MAX_CODES = 24  # that stand for a cluster
MAX_CODES_OF_BRANCH = 96
MAX_MERGES = 255
MAX_ANCESTORS = 16
PICTURE: Responses = {
    200: {"content": {"image/webp": BINARY}},
    304: {"description": "Not modified."},
}
ABSENT = problems("unknown-model", "no-codebook", "other-version")
Version = Annotated[
    str | None, Query(description="Version that is meant. Where another one is served: 409.")
]


@router.get(
    "/classes/{class_id}/thumbnail",
    summary="A small image of a class",
    response_class=Response,
    responses=PICTURE | problems("unknown-model", "unknown-class", "other-version", "invalid"),
)
async def thumbnail(
    request: Request,
    name: str,
    class_id: Annotated[int, Path(ge=0, description="Id of the class.")],
    state: State,
    v: Version = None,
) -> Response:
    """One that the model has made, from the samples of its bundle."""
    manifest = await _manifest(state, name, v)
    if class_id >= len(manifest.class_names):
        last = len(manifest.class_names) - 1
        raise UnknownClassError("class_id", f"{name} has classes 0 to {last}")
    thumbnails = await state.codebook_cache.thumbnails(manifest)
    if not thumbnails:
        raise HTTPException(404, f"{name} {manifest.version} was published without samples")
    return _picture(request, thumbnails[class_id], v)


@router.get("/codebook", summary="The codebook of a model", responses=ABSENT)
async def codebook(name: str, state: State, v: Version = None) -> CodebookSummary:
    """Tell how many codes and clusters there are, and how patches lie on their sheet."""
    manifest = await _manifest(state, name, v)
    view = await state.codebook_cache.codebook(manifest)
    book = view.codebook
    return CodebookSummary(
        model=manifest.name,
        version=manifest.version,
        num_codes=book.prior.num_codes,
        num_clusters=book.prior.num_clusters,
        sizes=[SizeCount(size=size, clusters=count) for size, count in book.sizes()],
        num_branches=int((book.nodes >= 0).sum()),
        cut_height=book.cut_height(),
        height=float(book.order.heights[-1]),
        root=book.root,
        patches=PatchSheet(side=view.side, columns=patch_columns(book.prior.num_codes)),
    )


@router.get(
    "/codebook/patches",
    summary="What each code looks like",
    response_class=Response,
    responses=PICTURE | ABSENT,
)
async def patches(request: Request, name: str, state: State, v: Version = None) -> Response:
    """Fetch the sheet of patches: the pixels that a code gives among random neighbours."""
    return _picture(request, (await _view(state, name, v)).patches, v)


@router.get(
    "/codebook/clusters",
    summary="Clusters of a model, page by page",
    responses=ABSENT | problems("invalid"),
)
async def clusters(
    name: str,
    state: State,
    sort: Annotated[
        Sort, Query(description="In the order of the tree, or the largest or highest first.")
    ] = "tree",
    least: Annotated[int, Query(ge=1, description="Codes that a cluster holds at least.")] = 1,
    offset: Annotated[int, Query(ge=0, description="How many to pass over.")] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_CLUSTERS, description="How many at most.")] = 60,
    v: Version = None,
) -> ClusterPage:
    """List clusters, each with codes that stand for it."""
    book = (await _view(state, name, v)).codebook
    numbers = book.clusters(sort, least)
    return ClusterPage(
        total=len(numbers),
        offset=offset,
        clusters=[
            book.cluster(number, MAX_CODES) for number in numbers[offset : offset + limit].tolist()
        ],
    )


@router.get(
    "/codebook/clusters/{cluster}",
    summary="A cluster with all its codes",
    responses=ABSENT | problems("invalid"),
)
async def cluster(
    name: str,
    cluster: Annotated[int, Path(ge=0, description="Number of the cluster.")],
    state: State,
    v: Version = None,
) -> ClusterDetail:
    """Show the codes of a cluster, and the merges that made it."""
    book = (await _view(state, name, v)).codebook
    if cluster >= book.prior.num_clusters:
        raise HTTPException(404, f"{name} has clusters 0 to {book.prior.num_clusters - 1}")
    summary = book.cluster(cluster)
    merges = [] if summary.node is None else book.merges_below(summary.node, MAX_MERGES)
    return ClusterDetail(**summary.model_dump(), merges=[book.merge(node) for node in merges])


@router.get(
    "/codebook/nodes/{node}",
    summary="A branch of the tree",
    responses=ABSENT | problems("invalid"),
)
async def branch(
    name: str,
    node: Annotated[int, Path(ge=0, description="Number of the node, as SciPy counts.")],
    state: State,
    v: Version = None,
) -> BranchDetail:
    """Show a node, what it is made of, and what it becomes part of."""
    book = (await _view(state, name, v)).codebook
    if node > book.root:
        raise HTTPException(404, f"{name} has nodes 0 to {book.root}")
    return BranchDetail(
        **book.branch(node, MAX_CODES_OF_BRANCH).model_dump(),
        children=[book.branch(child, MAX_CODES_OF_BRANCH) for child in book.children(node)],
        above=[book.merge(upper) for upper in book.ancestors(node, MAX_ANCESTORS)],
        num_above=int(book.order.depths[node]),
    )


async def _manifest(state: AppState, name: str, version: str | None) -> Manifest:
    """Of the version that is served, which is the one that is meant if one is."""
    manifest = await state.manifest(name)
    if version is not None and version != manifest.version:
        raise HTTPException(409, f"{name} is served in version {manifest.version} now")
    return manifest


async def _view(state: AppState, name: str, version: str | None) -> CodebookView:
    return await state.codebook_cache.codebook(await _manifest(state, name, version))


def _picture(request: Request, content: bytes, version: str | None) -> Response:
    # Under an address that names the version there is never another picture.
    cache_control = "no-cache" if version is None else "max-age=3600"
    return cached_response(request, content, "image/webp", cache_control)
