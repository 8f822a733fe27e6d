"""The semantic tree of a codebook, built by exact linkage."""

from masc_core.semantic_tree import SemanticTree
from masc_core.tree.build import Linkage, build_tree
from masc_core.tree.upgma.types import Report

__all__ = ["Linkage", "Report", "SemanticTree", "build_tree"]
