"""Small trees and patches for the tests of what is drawn of a prior."""

from __future__ import annotations

import numpy as np
from scipy.cluster import hierarchy

from masc_core.images import Pixels
from masc_core.semantic_tree import LeafOrder, SemanticTree


def random_tree(num_codes: int, seed: int = 0) -> SemanticTree:
    # SciPy's: ours is the same, but needs compiled loops, and modules make trees when imported.
    rows = np.random.default_rng(seed).normal(size=(num_codes, 3))
    return SemanticTree(hierarchy.linkage(rows, "average"))


def random_order(num_codes: int, seed: int = 0) -> LeafOrder:
    return LeafOrder.of(random_tree(num_codes, seed))


def random_patches(num_codes: int, side: int = 8) -> Pixels:
    shape = (num_codes, side, side, 3)
    return np.random.default_rng(num_codes).integers(0, 256, shape, dtype=np.uint8)
