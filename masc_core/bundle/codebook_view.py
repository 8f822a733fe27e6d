"""What a bundle shows of its codebook: the tree over it, and what each code looks like.

Two optional files that no image depends on, so neither counts among the weights: ``tree.npy``, the
linkage, float64 (V-1, 4), and ``patches.webp``, the patches of all codes in rows of ceil(sqrt(V)),
without loss. Both are read without torch.

Legend: V codes, f pixels a side of a patch.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from masc_core.bundle.manifest import PATCHES_FILE, TREE_FILE
from masc_core.images import UNREADABLE, Pixels
from masc_core.io.npz import DAMAGE, read_npy
from masc_core.semantic_tree import SemanticTree

LARGEST_PATCH = 8  # pixels a side; larger ones are made smaller, for they are only looked at


@dataclass(frozen=True, slots=True, eq=False)
class CodebookFiles:
    """A codebook to look at."""

    tree: SemanticTree  # over V codes
    patches: Pixels  # uint8 (V, f, f, 3)

    def __post_init__(self) -> None:
        expected = (self.tree.num_codes, self.patches.shape[1], self.patches.shape[1], 3)
        if self.patches.shape != expected:
            raise ValueError(f"patches have the shape {self.patches.shape}, not {expected}")

    def encode(self) -> Mapping[str, bytes]:
        """Content of the files by name; equal input gives equal bytes."""
        linkage, sheet = io.BytesIO(), io.BytesIO()
        np.lib.format.write_array(linkage, self.tree.linkage, allow_pickle=False)
        lossless = {"lossless": True, "method": 6, "quality": 100}
        Image.fromarray(_sheet(_reduced(self.patches))).save(sheet, "WEBP", **lossless)
        return {TREE_FILE: linkage.getvalue(), PATCHES_FILE: sheet.getvalue()}


def patch_columns(num_codes: int) -> int:
    """Patches a row of the sheet."""
    return math.isqrt(num_codes - 1) + 1


def decode_tree(content: bytes, num_codes: int) -> SemanticTree:
    """Read the tree; a `ValueError` where it is none, or not over ``num_codes`` codes."""
    try:
        linkage = read_npy(io.BytesIO(content), len(content), 32 * num_codes)
    except DAMAGE as error:
        raise ValueError("is not an .npy array of numbers, or is damaged") from error
    tree = SemanticTree(linkage)
    if tree.num_codes != num_codes:
        raise ValueError(f"is over {tree.num_codes} codes, not {num_codes}")
    return tree


def patch_side(content: bytes, num_codes: int) -> int:
    """Pixels a side of the patches on a sheet, of which only the head is read.

    A `ValueError` says that it is no image, or not of the size of ``num_codes`` patches.
    """
    try:
        with Image.open(io.BytesIO(content), formats=["WEBP"]) as sheet:
            width, height = sheet.size
    except UNREADABLE as error:
        raise ValueError("is not an image") from error
    columns = patch_columns(num_codes)
    side, rest = divmod(width, columns)
    if rest or not side or height != side * -(-num_codes // columns):
        raise ValueError(f"has {width}x{height} pixels, which {num_codes} patches do not fill")
    return side


def _reduced(patches: Pixels) -> Pixels:
    """Patches of at most `LARGEST_PATCH` pixels a side, by means over squares of pixels."""
    num_codes, side = patches.shape[:2]
    times = -(-side // LARGEST_PATCH)
    if times == 1:
        return patches
    cut = side // times * times
    squares = patches[:, :cut, :cut].reshape(num_codes, cut // times, times, cut // times, times, 3)
    return squares.mean(axis=(2, 4)).round().astype(np.uint8)


def _sheet(patches: Pixels) -> Pixels:
    """Patches (V, f, f, 3) in rows, black where the last row ends early."""
    num_codes, side = patches.shape[:2]
    columns = patch_columns(num_codes)
    rows = -(-num_codes // columns)
    filled = np.zeros((rows * columns, side, side, 3), dtype=np.uint8)
    filled[:num_codes] = patches
    grid = filled.reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * side, columns * side, 3)
