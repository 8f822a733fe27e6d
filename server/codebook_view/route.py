"""What people see of a model: thumbnails of its classes, and its codebook, for the page.

Legend: V codes, K clusters.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from masc_core.bundle.codebook_view import patch_columns
from masc_core.bundle.manifest import Manifest
from masc_core.errors import UnknownClassError
from server.answers.images import BINARY, etag_of
from server.codebook_view.cache import Pictured
from server.codebook_view.codebook import Codebook, Sort
from server.codebook_view.schemas import (
    BranchDetail,
    BranchSummary,
    ClusterDetail,
    ClusterPage,
    ClusterSummary,
    CodebookSummary,
    Merge,
    PatchSheet,
    SizeCount,
)
from server.openapi import Responses, problems
from server.state import Front, FrontDependency

router = APIRouter(prefix="/models/{name}", tags=["models"])

MOST_CLUSTERS = 200  # a page
MOST_CODES = 24  # that stand for a cluster
MOST_CODES_OF_BRANCH = 96
MOST_MERGES = 255
MOST_ABOVE = 16
PICTURE: Responses = {200: {"content": {"image/webp": BINARY}}, 304: {"description": "As before."}}
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
    front: FrontDependency,
    v: Version = None,
) -> Response:
    """One that the model has made, from the samples of its bundle."""
    manifest = await _manifest(front, name, v)
    if class_id >= len(manifest.class_names):
        last = len(manifest.class_names) - 1
        raise UnknownClassError("class_id", f"{name} has classes 0 to {last}")
    thumbnails = await front.gallery.thumbnails(manifest)
    if not thumbnails:
        raise HTTPException(404, f"{name} {manifest.version} was published without samples")
    return _picture(request, thumbnails[class_id], v)


@router.get("/codebook", summary="The codebook of a model", responses=ABSENT)
async def codebook(name: str, front: FrontDependency, v: Version = None) -> CodebookSummary:
    """Tell how many codes and clusters there are, and how patches lie on their sheet."""
    manifest = await _manifest(front, name, v)
    pictured = await front.gallery.codebook(manifest)
    shown = pictured.codebook
    return CodebookSummary(
        model=manifest.name,
        version=manifest.version,
        num_codes=shown.prior.num_codes,
        num_clusters=shown.prior.num_clusters,
        sizes=[SizeCount(size=size, clusters=count) for size, count in shown.sizes()],
        num_branches=int((shown.nodes >= 0).sum()),
        cut_height=shown.cut_height(),
        height=float(shown.order.heights[-1]),
        root=shown.root,
        patches=PatchSheet(side=pictured.side, columns=patch_columns(shown.prior.num_codes)),
    )


@router.get(
    "/codebook/patches",
    summary="What each code looks like",
    response_class=Response,
    responses=PICTURE | ABSENT,
)
async def patches(
    request: Request, name: str, front: FrontDependency, v: Version = None
) -> Response:
    """Fetch the sheet of patches: the pixels that a code gives among random neighbours."""
    return _picture(request, (await _pictured(front, name, v)).patches, v)


@router.get(
    "/codebook/clusters",
    summary="Clusters of a model, page by page",
    responses=ABSENT | problems("invalid"),
)
async def clusters(
    name: str,
    front: FrontDependency,
    sort: Annotated[
        Sort, Query(description="In the order of the tree, or the largest or highest first.")
    ] = "tree",
    least: Annotated[int, Query(ge=1, description="Codes that a cluster holds at least.")] = 1,
    offset: Annotated[int, Query(ge=0, description="How many to pass over.")] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_CLUSTERS, description="How many at most.")] = 60,
    v: Version = None,
) -> ClusterPage:
    """List clusters, each with codes that stand for it."""
    shown = (await _pictured(front, name, v)).codebook
    numbers = shown.clusters(sort, least)
    return ClusterPage(
        total=len(numbers),
        offset=offset,
        clusters=[
            ClusterSummary(**dataclasses.asdict(shown.cluster(number, MOST_CODES)))
            for number in numbers[offset : offset + limit].tolist()
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
    front: FrontDependency,
    v: Version = None,
) -> ClusterDetail:
    """Show the codes of a cluster, and the merges that made it."""
    shown = (await _pictured(front, name, v)).codebook
    if cluster >= shown.prior.num_clusters:
        raise HTTPException(404, f"{name} has clusters 0 to {shown.prior.num_clusters - 1}")
    found = shown.cluster(cluster)
    inside = [] if found.node is None else shown.below(found.node, MOST_MERGES)
    return ClusterDetail(
        **dataclasses.asdict(found), merges=[_merge(shown, node) for node in inside]
    )


@router.get(
    "/codebook/nodes/{node}",
    summary="A branch of the tree",
    responses=ABSENT | problems("invalid"),
)
async def branch(
    name: str,
    node: Annotated[int, Path(ge=0, description="Number of the node, as SciPy counts.")],
    front: FrontDependency,
    v: Version = None,
) -> BranchDetail:
    """Show a node, what it is made of, and what it becomes part of."""
    shown = (await _pictured(front, name, v)).codebook
    if node > shown.root:
        raise HTTPException(404, f"{name} has nodes 0 to {shown.root}")
    above = shown.above(node)
    return BranchDetail(
        **_branch(shown, node).model_dump(),
        children=[_branch(shown, child) for child in shown.children(node)],
        above=[_merge(shown, upper) for upper in above[:MOST_ABOVE]],
        num_above=len(above),
    )


async def _manifest(front: Front, name: str, version: str | None) -> Manifest:
    """Of the version that is served, which is the one that is meant if one is."""
    manifest = await front.manifest(name)
    if version is not None and version != manifest.version:
        raise HTTPException(409, f"{name} is served in version {manifest.version} now")
    return manifest


async def _pictured(front: Front, name: str, version: str | None) -> Pictured:
    return await front.gallery.codebook(await _manifest(front, name, version))


def _branch(shown: Codebook, node: int) -> BranchSummary:
    return BranchSummary(**dataclasses.asdict(shown.branch(node, MOST_CODES_OF_BRANCH)))


def _merge(shown: Codebook, node: int) -> Merge:
    return Merge(
        node=node,
        height=float(shown.order.heights[node]),
        size=int(shown.order.sizes[node]),
        children=list(shown.children(node)),
    )


def _picture(request: Request, content: bytes, version: str | None) -> Response:
    # Under an address that names the version there is never another picture.
    kept = "no-cache" if version is None else "max-age=3600"
    headers = {"ETag": etag_of(content), "Cache-Control": kept}
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type="image/webp")
