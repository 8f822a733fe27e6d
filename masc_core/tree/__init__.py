"""The semantic tree of a codebook, built by exact linkage."""

from masc_core.semantic_tree import SemanticTree
from masc_core.tree.build import LINKAGES, Linkage, build_tree

__all__ = ["LINKAGES", "Linkage", "SemanticTree", "build_tree"]
