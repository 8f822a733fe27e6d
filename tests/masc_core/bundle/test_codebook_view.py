from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masc_core.bundle.codebook_view import (
    CodebookFiles,
    decode_tree,
    patch_columns,
    patch_side,
)
from masc_core.bundle.manifest import PATCHES_FILE, TREE_FILE, read_manifest
from masc_core.images import Pixels
from tests.prior_trees import random_tree

SHIPPED = Path(__file__).parents[3] / "models" / "cifar10" / "1"


def patches(num_codes: int, side: int, seed: int = 0) -> Pixels:
    shape = (num_codes, side, side, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def tile(sheet: bytes, code: int, num_codes: int, side: int) -> Pixels:
    row, column = divmod(code, patch_columns(num_codes))
    pixels = np.asarray(Image.open(io.BytesIO(sheet)).convert("RGB"))
    return pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]


@pytest.mark.parametrize(("num_codes", "side"), [(2, 1), (9, 4), (10, 3), (17, 8)])
def test_files_give_back_tree_and_patches(num_codes: int, side: int) -> None:
    tree, pixels = random_tree(num_codes), patches(num_codes, side)
    files = CodebookFiles(tree, pixels).encode()
    assert set(files) == {TREE_FILE, PATCHES_FILE}
    assert (decode_tree(files[TREE_FILE], num_codes).linkage == tree.linkage).all()
    assert patch_side(files[PATCHES_FILE], num_codes) == side
    for code in range(num_codes):
        assert (tile(files[PATCHES_FILE], code, num_codes, side) == pixels[code]).all()
    assert CodebookFiles(tree, pixels).encode() == files


@pytest.mark.parametrize(("side", "kept", "times"), [(16, 8, 2), (18, 6, 3), (9, 4, 2)])
def test_large_patches_are_made_smaller_by_means(side: int, kept: int, times: int) -> None:
    pixels = patches(5, side)
    sheet = CodebookFiles(random_tree(5), pixels).encode()[PATCHES_FILE]
    assert patch_side(sheet, 5) == kept
    expected = pixels[4, :times, :times].mean(axis=(0, 1)).round()
    assert (tile(sheet, 4, 5, kept)[0, 0] == expected).all()


@pytest.mark.parametrize("shape", [(6, 4, 4, 3), (5, 4, 5, 3), (5, 4, 4, 1)])
def test_patches_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="patches have the shape"):
        CodebookFiles(random_tree(5), np.zeros(shape, np.uint8))


def test_damaged_trees_are_refused() -> None:
    content = CodebookFiles(random_tree(9), patches(9, 2)).encode()[TREE_FILE]
    for damaged in (b"", content[:-1], b"PK" + content[2:]):
        with pytest.raises(ValueError, match="damaged"):
            decode_tree(damaged, 9)
    with pytest.raises(ValueError, match="over 9 codes, not 10"):
        decode_tree(content, 10)
    wrong = io.BytesIO()
    np.save(wrong, np.zeros((3, 4)))
    with pytest.raises(ValueError, match="merge 0"):
        decode_tree(wrong.getvalue(), 4)


def test_sheets_of_another_size_are_refused() -> None:
    sheet = CodebookFiles(random_tree(9), patches(9, 2)).encode()[PATCHES_FILE]
    assert patch_side(sheet, 9) == 2
    for num_codes in (5, 6, 10):
        with pytest.raises(ValueError, match="do not fill"):
            patch_side(sheet, num_codes)
    with pytest.raises(ValueError, match="is not an image"):
        patch_side(b"RIFF", 9)


def test_the_shipped_bundle_shows_its_codebook() -> None:
    manifest = read_manifest(SHIPPED)
    assert {TREE_FILE, PATCHES_FILE} <= set(manifest.files)
    tree = decode_tree((SHIPPED / TREE_FILE).read_bytes(), manifest.num_codes)
    assert tree.heights[-1] > tree.heights[0] > 0
    assert patch_side((SHIPPED / PATCHES_FILE).read_bytes(), manifest.num_codes) == 4
