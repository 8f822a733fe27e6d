from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from masc_core.images import Pixels
from masc_core.prior import ClusterMap
from tests.prior_trees import random_order, random_patches
from training.studies.atlas import atlas_clusters
from training.studies.atlas_sheet import COLUMNS, Sheet, draw_sheet


def pixels_of(sheet: Sheet) -> Pixels:
    with Image.open(io.BytesIO(sheet.png)) as image:
        assert not image.info
        return np.asarray(image.convert("RGB"))


def sheet_of(prior: ClusterMap, side: int = 8) -> Sheet:
    order = random_order(prior.num_codes)
    return draw_sheet(atlas_clusters(prior, order), random_patches(prior.num_codes, side))


@pytest.mark.parametrize("num_clusters", [1, 2, 70, 150])
def test_the_patch_of_every_code_lies_at_its_corner(num_clusters: int) -> None:
    order, patches = random_order(150), random_patches(150)
    sheet = draw_sheet(atlas_clusters(order.tree.cut(num_clusters), order), patches)
    pixels = pixels_of(sheet)
    assert sorted(sheet.corners) == list(range(150))
    for code, (left, top) in sheet.corners.items():
        assert np.array_equal(pixels[top : top + 8, left : left + 8], patches[code])


def test_patches_do_not_touch() -> None:
    sheet = sheet_of(random_order(150).tree.cut(70))
    corners = np.array(list(sheet.corners.values()))
    apart = np.abs(corners[:, None] - corners).max(axis=2)
    assert apart[~np.eye(150, dtype=bool)].min() > 8


def test_a_cluster_longer_than_a_row_goes_on_in_the_next() -> None:
    sheet = sheet_of(random_order(150).tree.cut(1))
    rows = sorted(top for _, top in sheet.corners.values())
    assert [rows.count(top) for top in sorted(set(rows))] == [COLUMNS] * 3 + [30]


def test_clusters_stay_whole_where_a_row_can_hold_them() -> None:
    prior = ClusterMap.from_labels(np.arange(150) // 15)
    sheet = sheet_of(prior)
    for number in range(10):
        tops = {sheet.corners[code][1] for code in np.flatnonzero(prior.labels == number).tolist()}
        assert len(tops) == 1


def test_clusters_are_further_apart_than_codes() -> None:
    prior = ClusterMap.from_labels(np.arange(8) // 4)
    sheet = sheet_of(prior)
    lefts = sorted(left for left, _ in sheet.corners.values())
    steps = np.diff(lefts)
    assert steps[3] > 9
    assert set(np.delete(steps, 3)) == {9}


def test_single_codes_begin_below_their_heading() -> None:
    prior = ClusterMap.from_labels([0, 0, 1, 2])
    sheet = sheet_of(prior)
    tops = {code: top for code, (_, top) in sheet.corners.items()}
    assert tops[0] == tops[1]
    assert tops[2] == tops[3] > tops[0] + 40


def test_equal_sheets_are_equal_bytes() -> None:
    prior = random_order(40).tree.cut(20)
    assert sheet_of(prior).png == sheet_of(prior).png
