"""The codebook of a model: sizes, clusters, and branches of the tree."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

Height = Annotated[float, Field(description="Mean distance at which the branch merged.")]
Shown = Annotated[list[int], Field(description="Codes that stand for it, in the tree's order.")]


class SizeCount(BaseModel):
    """How many clusters are of one size."""

    size: int
    clusters: int


class PatchSheet(BaseModel):
    """How the patches lie on their sheet: code `c` in column `c % columns`."""

    side: Annotated[int, Field(description="Pixels on each side of a patch.")]
    columns: int


class CodebookSummary(BaseModel):
    """What there is to browse."""

    model: str
    version: str
    num_codes: int
    num_clusters: int
    sizes: list[SizeCount]
    num_branches: Annotated[int, Field(description="Clusters that are branches of the tree.")]
    cut_height: Annotated[
        float | None, Field(description="Of the highest cluster; null where some are no branches.")
    ]
    height: Annotated[float, Field(description="Of the whole tree.")]
    root: Annotated[int, Field(description="The node over all codes.")]
    patches: PatchSheet


class ClusterSummary(BaseModel):
    """A cluster."""

    id: int
    size: Annotated[int, Field(description="Codes that it holds.")]
    height: Height | None
    node: Annotated[int | None, Field(description="Its branch; null where it is none.")]
    codes: Shown


class ClusterPage(BaseModel):
    """Some of the clusters."""

    total: Annotated[int, Field(description="Clusters that the question fits.")]
    offset: int
    clusters: list[ClusterSummary]


class Merge(BaseModel):
    """A node of the tree, and what it was made of."""

    node: int
    height: Height
    size: int
    children: list[int]


class ClusterDetail(ClusterSummary):
    """A cluster with all its codes."""

    merges: Annotated[
        list[Merge], Field(description="Inside it, the highest first; of a large one not all.")
    ]


class BranchSummary(BaseModel):
    """A node of the tree; those below the number of codes are codes."""

    node: int
    size: Annotated[int, Field(description="Codes under it.")]
    height: Height
    num_clusters: Annotated[int, Field(description="That its codes belong to.")]
    cluster: Annotated[int | None, Field(description="The only one; null where there are more.")]
    codes: Shown


class BranchDetail(BranchSummary):
    """A node with its neighbours in the tree."""

    children: list[BranchSummary]
    above: Annotated[list[Merge], Field(description="Nodes over it, the nearest few.")]
    num_above: Annotated[int, Field(description="Nodes over it, up to the whole tree.")]
