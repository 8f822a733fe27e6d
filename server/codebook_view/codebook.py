"""The codebook of a model as people browse it: clusters, and the branches of the tree over it.

Codes stand in the order of the tree's leaves, so that neighbours look alike. Where the prior is a
cut of the tree a cluster is a branch; otherwise it has no node and no height.

Legend: V codes, K clusters; nodes are numbered as in SciPy, see `masc_core.semantic_tree`.
"""

from __future__ import annotations

import heapq
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, Field

from masc_core.arrays import IntArray
from masc_core.prior import ClusterMap
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


class Codebook:
    """A tree and a prior over the same V codes.

    Attributes
    ----------
    order : of the leaves
    nodes : int64 (K,), branch of each cluster, -1 without one
    parents : int64 (2V-1,), the node that each is merged into, -1 of the root
    """

    def __init__(self, tree: SemanticTree, prior: ClusterMap) -> None:
        self.tree, self.prior = tree, prior
        self.order = LeafOrder.of(tree)
        self.nodes: IntArray = self.order.branches(prior)
        self.parents: IntArray = np.full(2 * tree.num_codes - 1, -1, dtype=np.int64)
        merged = tree.linkage[:, :2].astype(np.int64)
        self.parents[merged] = np.arange(tree.num_codes, len(self.parents))[:, None]
        self._sorted: dict[Sort, IntArray] = {}
        # In the order of the leaves: where each code's cluster was before, -1 where nowhere.
        labels = prior.labels[self.order.codes]
        by_label = np.argsort(labels, kind="stable")
        again = labels[by_label][1:] == labels[by_label][:-1]
        self._last_seen: IntArray = np.full(len(labels), -1, dtype=np.int64)
        self._last_seen[by_label[1:][again]] = by_label[:-1][again]

    @property
    def root(self) -> int:
        """The node over all codes."""
        return len(self.parents) - 1

    def sizes(self) -> list[tuple[int, int]]:
        """Pairs of a size and how many clusters hold that many codes."""
        counts = np.bincount(self.prior.sizes)
        return [(size, int(counts[size])) for size in np.flatnonzero(counts).tolist()]

    def cut_height(self) -> float | None:
        """Height of the last merge that was kept; None where some cluster is not a branch."""
        return None if (self.nodes < 0).any() else float(self.order.heights[self.nodes].max())

    def clusters(self, sort: Sort = "tree", least: int = 1) -> IntArray:
        """Numbers of the clusters of at least so many codes, int64.

        They come in the order of the leaves, or the largest or the highest first.
        """
        if sort not in self._sorted:
            self._sorted[sort] = self._sort(sort)
        ordered = self._sorted[sort]
        return ordered[self.prior.sizes[ordered] >= least] if least > 1 else ordered

    def _sort(self, sort: Sort) -> IntArray:
        keys = [self.order.cluster_starts(self.prior)]
        if sort == "size":
            keys.append(-self.prior.sizes)
        elif sort == "height":
            heights = np.where(self.nodes < 0, -1.0, self.order.heights[self.nodes])
            keys.append(-heights)
        return np.lexsort(keys)

    def cluster(self, number: int, most: int | None = None) -> ClusterSummary:
        """One cluster in 0..K-1, with at most so many of its codes."""
        codes = self.order.sort(
            self.prior.members[self.prior.offsets[number] : self.prior.offsets[number + 1]]
        )
        node = int(self.nodes[number])
        return ClusterSummary(
            id=number,
            size=len(codes),
            height=None if node < 0 else float(self.order.heights[node]),
            node=None if node < 0 else node,
            codes=_evenly_spaced(codes, most),
        )

    def branch(self, node: int, most: int) -> BranchSummary:
        """One node in 0..2V-2, with at most so many of its codes."""
        start, size = int(self.order.starts[node]), int(self.order.sizes[node])
        codes = self.order.codes[start : start + size]
        num_clusters = int(np.count_nonzero(self._last_seen[start : start + size] < start))
        return BranchSummary(
            node=node,
            size=size,
            height=float(self.order.heights[node]),
            num_clusters=num_clusters,
            cluster=int(self.prior.labels[codes[0]]) if num_clusters == 1 else None,
            codes=_evenly_spaced(codes, most),
        )

    def merge(self, node: int) -> Merge:
        """One node, and the two that it is made of."""
        return Merge(
            node=node,
            height=float(self.order.heights[node]),
            size=int(self.order.sizes[node]),
            children=list(self.children(node)),
        )

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

    def ancestors(self, node: int, most: int) -> list[int]:
        """The nodes over a node, the nearest first, at most so many."""
        path: list[int] = []
        while len(path) < most and (node := int(self.parents[node])) >= 0:
            path.append(node)
        return path


def _evenly_spaced(codes: IntArray, most: int | None) -> list[int]:
    if most is not None and len(codes) > most:
        codes = codes[np.linspace(0, len(codes) - 1, most).round().astype(np.int64)]
    return codes.tolist()
