from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from masc_core.prior import ClusterMap
from tests.prior_trees import random_order, random_patches
from tests.training.studies.atlas_reader import AtlasReader
from training.studies.atlas import (
    COLUMNS,
    AtlasCluster,
    Overview,
    Sheet,
    atlas_clusters,
    atlas_pages,
    draw_sheet,
    page_stem,
    split_clusters,
)

OVERVIEW = Overview("Codes & <clusters>", {"V": "60 > 30"}, {"tree.png": 'a "tree"'})
ORDER = random_order(60)
PRIOR = ORDER.tree.cut(30)


def sheets_of(prior: ClusterMap, codes_per_sheet: int = 25) -> list[Sheet]:
    order = random_order(prior.num_codes)
    parts = split_clusters(atlas_clusters(prior, order), codes_per_sheet)
    return [draw_sheet(part, random_patches(prior.num_codes)) for part in parts]


def sheet_of(prior: ClusterMap) -> Sheet:
    (sheet,) = sheets_of(prior, prior.num_codes)
    return sheet


def pages_of(prior: ClusterMap, codes_per_sheet: int = 25) -> list[AtlasReader]:
    return [AtlasReader(page) for page in atlas_pages(sheets_of(prior, codes_per_sheet), OVERVIEW)]


def test_single_codes_come_last_and_each_part_in_the_order_of_leaves() -> None:
    clusters = atlas_clusters(PRIOR, ORDER)
    singles = [cluster.is_single for cluster in clusters]
    assert 0 < sum(singles) < 30
    assert singles == sorted(singles)
    for part in (False, True):
        codes = [c.codes for c in clusters if c.is_single is part]
        assert (np.diff(ORDER.starts[np.concatenate(codes)]) > 0).all()


def test_heights_are_those_of_the_merges_below_the_cut() -> None:
    clusters = atlas_clusters(PRIOR, ORDER)
    heights = [cluster.height for cluster in clusters if cluster.height is not None]
    assert len(heights) == 30
    assert max(heights) == ORDER.tree.heights[60 - 30 - 1]
    assert all((cluster.height == 0) == cluster.is_single for cluster in clusters)


def test_a_cluster_from_elsewhere_stands_where_most_of_it_is_without_a_height() -> None:
    labels = np.arange(60)
    labels[ORDER.codes[[0, 40, 41, 42]]] = 99
    clusters = atlas_clusters(ClusterMap.from_labels(labels), ORDER)
    assert clusters[0].height is None
    assert clusters[0].codes.tolist() == ORDER.codes[[0, 40, 41, 42]].tolist()
    labels[ORDER.codes[10:13]] = 98
    clusters = atlas_clusters(ClusterMap.from_labels(labels), ORDER)
    assert [len(cluster.codes) for cluster in clusters[:2]] == [3, 4]


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ([3, 3, 4, 1], [[3, 3, 4], [1]]),
        ([3, 8], [[3], [8]]),
        ([12, 2, 30, 1, 1], [[12], [2], [30], [1, 1]]),
        ([5], [[5]]),
    ],
)
def test_parts_hold_whole_clusters(sizes: list[int], parts: list[list[int]]) -> None:
    clusters = [AtlasCluster(0, np.arange(size), 0.5) for size in sizes]
    split = [[len(c.codes) for c in part] for part in split_clusters(clusters, 10)]
    assert split == parts


def test_patches_do_not_touch() -> None:
    corners = np.array(list(sheet_of(random_order(150).tree.cut(70)).corners.values()))
    apart = np.abs(corners[:, None] - corners).max(axis=2)
    assert apart[~np.eye(150, dtype=bool)].min() > 8


def test_a_cluster_longer_than_a_row_goes_on_in_the_next() -> None:
    tops = [top for _, top in sheet_of(random_order(150).tree.cut(1)).corners.values()]
    assert [tops.count(top) for top in sorted(set(tops))] == [COLUMNS] * 3 + [30]


def test_clusters_stay_whole_where_a_row_can_hold_them() -> None:
    prior = ClusterMap.from_labels(np.arange(150) // 15)
    corners = sheet_of(prior).corners
    for number in range(10):
        assert len({corners[code][1] for code in range(15 * number, 15 * number + 15)}) == 1


def test_clusters_are_further_apart_than_codes() -> None:
    corners = sheet_of(ClusterMap.from_labels(np.arange(8) // 4)).corners
    steps = np.diff(sorted(left for left, _ in corners.values()))
    assert steps[3] > 9
    assert set(np.delete(steps, 3)) == {9}


def test_single_codes_begin_below_their_heading() -> None:
    corners = sheet_of(ClusterMap.from_labels([0, 0, 1, 2])).corners
    assert corners[0][1] == corners[1][1]
    assert corners[2][1] == corners[3][1] > corners[0][1] + 40


@pytest.mark.parametrize("num_clusters", [1, 30, 60])
def test_every_code_appears_once_in_its_cluster_and_looks_like_itself(num_clusters: int) -> None:
    prior, pixels = ORDER.tree.cut(num_clusters), random_patches(60)
    sheets, pages = sheets_of(prior), pages_of(prior)
    patches = [patch for page in pages for patch in page.patches]
    assert sorted(patch.code for patch in patches) == list(range(60))
    assert all(prior.labels[patch.code] == patch.cluster for patch in patches)
    anchors = [anchor for page in pages for anchor in page.anchors]
    wanted = [f"code-{i}" for i in range(60)] + [f"cluster-{i}" for i in range(num_clusters)]
    assert sorted(anchors) == sorted(wanted)
    for index, (sheet, page) in enumerate(zip(sheets, pages, strict=True)):
        with Image.open(io.BytesIO(sheet.png)) as image:
            assert not image.info
            drawn = np.asarray(image.convert("RGB"))
        for patch in page.patches:
            (left, top), (width, height) = patch.corner, patch.size
            assert patch.source == f"{page_stem(index)}.png"
            assert patch.lazy
            shown = drawn[top : top + height, left : left + width]
            assert np.array_equal(shown, pixels[patch.code])


def test_pages_need_nothing_from_elsewhere_and_no_script() -> None:
    for page in pages_of(PRIOR):
        assert not page.tags & {"script", "link", "iframe", "object", "base", "form"}
        assert not any(name.startswith("on") for name in page.attributes)
        assert "url(" not in page.text
        assert "@import" not in page.text
        assert all(page.alts)


def test_links_lead_to_pages_and_clusters_that_exist() -> None:
    pages = pages_of(PRIOR)
    assert len(pages) == 3
    targets = {
        f"{page_stem(i)}.html#{anchor}" for i, page in enumerate(pages) for anchor in page.anchors
    }
    targets |= {f"{page_stem(i)}{suffix}" for i in range(3) for suffix in (".html", ".png")}
    for index, page in enumerate(pages):
        own = {"tree.png"} if index == 0 else set()
        assert set(page.references) <= targets | own
        for i in range(3):
            assert f"{page_stem(i)}.html" in page.references


def test_the_first_page_names_the_largest_clusters() -> None:
    prior = ORDER.tree.cut(20)
    first, *others = pages_of(prior)
    linked = [r.split("#cluster-")[1] for r in first.references if "#cluster-" in r]
    sizes = prior.sizes[[int(number) for number in linked]]
    assert sizes.tolist() == sorted(prior.sizes[prior.sizes > 1], reverse=True)[:12]
    assert not any("#" in reference for page in others for reference in page.references)


def test_single_codes_are_folded_away_unless_there_is_nothing_else() -> None:
    (mixed,) = pages_of(PRIOR, 100)
    singles = np.flatnonzero(PRIOR.sizes[PRIOR.labels] == 1)
    assert {p.code for p in mixed.patches if p.folded} == set(singles.tolist())
    (flat,) = pages_of(ClusterMap.identity(60), 100)
    assert not any(patch.folded for patch in flat.patches)


def test_words_are_shown_as_they_are_written() -> None:
    first, second = pages_of(PRIOR, 40)
    assert "Codes & <clusters>" in first.words
    assert "Codes & <clusters>, page 2" in second.words
    assert "60 > 30" in first.words
    assert "60 > 30" not in second.words
    assert 'a "tree"' in first.alts


def test_a_cluster_that_is_no_branch_has_no_height() -> None:
    labels = np.arange(60)
    labels[ORDER.codes[-1]] = labels[ORDER.codes[0]]
    (page,) = pages_of(ClusterMap.from_labels(labels), 100)
    assert "2 codes, no branch" in page.words
    (page,) = pages_of(ORDER.tree.cut(59), 100)
    assert f"2 codes, height {ORDER.tree.heights[0]:.3f}" in page.words
