"""The codebook of a model: sizes, clusters, and branches of the tree."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, Field

from masc_core.prior import ClusterMap, IntArray
from masc_core.semantic_tree import LeafOrder, SemanticTree

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


Sort = Literal["tree", "size", "height"]


@dataclass(frozen=True, slots=True)
class Branch:
    """A node of the tree.

    Attributes
    ----------
    node : its number; those below V are codes
    size : codes under it
    height : at which its two children merged, 0 of a code
    num_clusters : that the codes belong to
    cluster : that they all belong to, None if there are several
    codes : some of them, evenly spaced in the order of the leaves
    """

    node: int
    size: int
    height: float
    num_clusters: int
    cluster: int | None
    codes: list[int]


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster.

    Attributes
    ----------
    id : its number
    size : codes that it holds
    node : the branch that holds just these, None without one
    height : of that branch
    codes : some of them, or all, in the order of the leaves
    """

    id: int
    size: int
    node: int | None
    height: float | None
    codes: list[int]


@dataclass(frozen=True, slots=True, eq=False)
class Codebook:
    """A tree and a prior over the same V codes.

    Parameters
    ----------
    tree : of the codes
    prior : which cluster each belongs to

    Attributes
    ----------
    order : of the leaves
    nodes : int64 (K,), branch of each cluster, -1 without one
    parents : int64 (2V-1,), the node that each is merged into, -1 of the root
    """

    tree: SemanticTree
    prior: ClusterMap
    order: LeafOrder = field(init=False)
    nodes: IntArray = field(init=False)
    parents: IntArray = field(init=False)

    def __post_init__(self) -> None:
        order = LeafOrder.of(self.tree)
        parents = np.full(2 * self.tree.num_codes - 1, -1, dtype=np.int64)
        merged = self.tree.linkage[:, :2].astype(np.int64)
        parents[merged] = np.arange(self.tree.num_codes, len(parents))[:, None]
        arrays = {"order": order, "nodes": order.branches(self.prior), "parents": parents}
        for name, value in arrays.items():
            object.__setattr__(self, name, value)

    @property
    def root(self) -> int:
        """The node over all codes."""
        return len(self.parents) - 1

    def sizes(self) -> list[tuple[int, int]]:
        """Pairs of a size and how many clusters hold that many codes."""
        sizes, counts = np.unique(self.prior.sizes, return_counts=True)
        return list(zip(sizes.tolist(), counts.tolist(), strict=True))

    def cut_height(self) -> float | None:
        """Height of the last merge that was kept; None where some cluster is not a branch."""
        return None if (self.nodes < 0).any() else float(self.order.heights[self.nodes].max())

    def clusters(self, sort: Sort = "tree", least: int = 1) -> IntArray:
        """Numbers of the clusters of at least so many codes, int64.

        They come in the order of the leaves, or the largest or the highest first.
        """
        keys = [self.order.firsts(self.prior)]
        if sort == "size":
            keys.append(-self.prior.sizes)
        elif sort == "height":
            heights = np.where(self.nodes < 0, -1.0, self.order.heights[self.nodes])
            keys.append(-heights)
        ordered = np.lexsort(keys)
        kept: IntArray = ordered[self.prior.sizes[ordered] >= least]
        return kept

    def cluster(self, number: int, most: int | None = None) -> Cluster:
        """One cluster in 0..K-1, with at most so many of its codes."""
        codes = self.order.sort(
            self.prior.members[self.prior.offsets[number] : self.prior.offsets[number + 1]]
        )
        node = int(self.nodes[number])
        return Cluster(
            number,
            len(codes),
            None if node < 0 else node,
            None if node < 0 else float(self.order.heights[node]),
            _evenly_spaced(codes, most),
        )

    def branch(self, node: int, most: int) -> Branch:
        """One node in 0..2V-2, with at most so many of its codes."""
        start, size = int(self.order.starts[node]), int(self.order.sizes[node])
        codes = self.order.codes[start : start + size]
        clusters = np.unique(self.prior.labels[codes])
        only = int(clusters[0]) if len(clusters) == 1 else None
        height = float(self.order.heights[node])
        return Branch(node, size, height, len(clusters), only, _evenly_spaced(codes, most))

    def children(self, node: int) -> tuple[int, ...]:
        """The two nodes that a node is made of; none of a code."""
        if node < self.tree.num_codes:
            return ()
        first, second = self.tree.linkage[node - self.tree.num_codes, :2]
        return int(first), int(second)

    def merges_below(self, node: int, most: int) -> list[int]:
        """The merges under a node and itself, the highest first, at most so many."""
        merges: list[int] = []
        waiting = [-node] if node >= self.tree.num_codes else []
        while waiting and len(merges) < most:
            merges.append(-heapq.heappop(waiting))  # ids rise with heights
            for child in self.children(merges[-1]):
                if child >= self.tree.num_codes:
                    heapq.heappush(waiting, -child)
        return merges

    def ancestors(self, node: int) -> list[int]:
        """The nodes over a node, the nearest first, the root last."""
        path = []
        while (node := int(self.parents[node])) >= 0:
            path.append(node)
        return path


def _evenly_spaced(codes: IntArray, most: int | None) -> list[int]:
    if most is None or len(codes) <= most:
        chosen = codes
    else:
        chosen = codes[np.linspace(0, len(codes) - 1, most).round().astype(np.int64)]
    picked: list[int] = chosen.tolist()
    return picked
